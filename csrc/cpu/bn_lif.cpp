// Mean and variance per channel, for the batch norm in front of the LIF, and what they add to the gradient of y; all the
// rest of it is the LIF itself with gain and bias per channel. Compiled once per vector width (ESVAE_ISA).
#include "../math/statistics.h"
#include "channels.h"
#include "kernels.h"
#include "parallel.h"
#include "rows.h"

namespace esvae {
namespace {

constexpr int64_t kStatisticsBlock = 16384, kStatisticsPiece = 2048;  // elements

ChannelSums sums_of(const BatchStatistics& a) { return {{a.channels, a.inner}, kStatisticsBlock, 2}; }

// Adds y - shift and its square, in 16 parts side by side.
template <class R>
void add_moments(const R* y, int64_t n, double shift, double& sum, double& square) {
  double sums[16] = {}, squares[16] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int64_t j = 0; j < 16; ++j) {
      const double d = static_cast<double>(y[i + j]) - shift;
      sums[j] += d;
      squares[j] += d * d;
    }
  for (; i < n; ++i) {
    const double d = static_cast<double>(y[i]) - shift;
    sum += d;
    square += d * d;
  }
  for (int64_t j = 0; j < 16; ++j) sum += sums[j], square += squares[j];
}

// The same for rows of n consecutive channels each, four rows at a time.
template <class R>
void add_rows(const R* y, int64_t rows, int64_t n, const double* shift, double* sum, double* square) {
  int64_t row = 0;
  for (; row + 4 <= rows; row += 4, y += 4 * n)
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) {
      const double d0 = static_cast<double>(y[c]) - shift[c], d1 = static_cast<double>(y[n + c]) - shift[c];
      const double d2 = static_cast<double>(y[2 * n + c]) - shift[c], d3 = static_cast<double>(y[3 * n + c]) - shift[c];
      sum[c] += (d0 + d1) + (d2 + d3);
      square[c] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3);
    }
  for (; row < rows; ++row, y += n)
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) {
      const double d = static_cast<double>(y[c]) - shift[c];
      sum[c] += d;
      square[c] += d * d;
    }
}

// Sums of y - shift and of its square in fp64, with each channel's first value as the shift: as exact as two passes, in
// one.
template <class R>
void statistics(const BatchStatistics& a) {
  const ChannelSums sums = sums_of(a);
  const Channels channels{a.channels, a.inner};
  const RowIo<R> io = row_io<R>(a.dtype);
  double* const shift = a.workspace + sums.workspace(a.size);
  for (int64_t c = 0; c < a.channels; ++c) {
    R buffer;
    shift[c] = static_cast<double>(*io.load(a.y, c * a.inner, &buffer, 1));
  }
  parallel_blocks(a.size, kStatisticsBlock, a.place.threads, [&](int64_t begin, int64_t size) {
    alignas(64) R buffer[kStatisticsPiece];
    sums.clear(a.workspace, begin);
    for (int64_t piece = 0; piece < size; piece += kStatisticsPiece) {
      const int64_t length = size - piece < kStatisticsPiece ? size - piece : kStatisticsPiece;
      const R* y = io.load(a.y, begin + piece, buffer, length);
      int64_t done = 0;
      channels.runs(begin + piece, length, [&](int64_t channel, int64_t i, int64_t n) {
        double *sum = sums.at(a.workspace, 0, begin, channel), *square = sums.at(a.workspace, 1, begin, channel);
        if (a.inner > 1) return add_moments(y + i, n, shift[channel], *sum, *square);
        if (i < done) return;  // the whole rows of channels behind the first one are taken together
        const int64_t rows = n == a.channels ? (length - i) / n : 1;
        add_rows(y + i, rows, n, shift + channel, sum, square);
        done = i + rows * n;
      });
    }
  });
  sums.finish(a.workspace, a.size, [&](int sum) { return sum == 0 ? a.mean : a.variance; });
  const double n = static_cast<double>(a.size / a.channels);
  for (int64_t c = 0; c < a.channels; ++c) {
    const double sum = a.mean[c];
    a.mean[c] = batch_mean(shift[c], sum, n);
    a.variance[c] = batch_variance(sum, a.variance[c], n);
  }
}

template <class R>
void correction(const BatchCorrection& a) {
  const Channels channels{a.channels, a.inner};
  const RowIo<R> io = row_io<R>(a.dtype);
  const R* factor = static_cast<const R*>(a.factors);
  const R* offset = factor + a.channels;
  const bool stream = a.size * io.bytes >= kStreamBytes;
  parallel_blocks(a.size, kStatisticsPiece, a.place.threads, [&](int64_t begin, int64_t size) {
    alignas(64) R dx_buffer[kStatisticsPiece], y_buffer[kStatisticsPiece], dy[kStatisticsPiece];
    const R* dx = io.load(a.dx, begin, dx_buffer, size);
    const R* y = io.load(a.y, begin, y_buffer, size);
    channels.runs(begin, size, [&](int64_t channel, int64_t i, int64_t n) {
      if (a.inner == 1)
#pragma omp simd
        for (int64_t j = 0; j < n; ++j)
          dy[i + j] = batch_corrected(dx[i + j], factor[channel + j], y[i + j], offset[channel + j]);
      else
        for (int64_t j = i; j < i + n; ++j) dy[j] = batch_corrected(dx[j], factor[channel], y[j], offset[channel]);
    });
    io.store(a.dy, begin, dy, size, stream);
    stream_fence(stream);
  });
}

}  // namespace

namespace ESVAE_ISA {

void batch_correction(const BatchCorrection& a) {
  with_state(a.dtype, [&](auto zero) { correction<decltype(zero)>(a); });
}

void batch_statistics(const BatchStatistics& a) {
  with_state(a.dtype, [&](auto zero) { statistics<decltype(zero)>(a); });
}

int64_t batch_statistics_workspace(const BatchStatistics& a) { return sums_of(a).workspace(a.size) + a.channels; }

}  // namespace ESVAE_ISA
}  // namespace esvae
