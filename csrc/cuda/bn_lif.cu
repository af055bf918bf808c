// Mean and variance per channel, for the batch norm in front of the LIF, and what they add to the gradient of y; all the
// rest of it is the LIF itself with gain and bias per channel.
#include "../math/statistics.h"
#include "device.h"
#include "kernels.h"

namespace esvae {
namespace {

constexpr int kStatisticsThreads = 128, kStatisticsVectors = 16, kUnder = 4;  // vectors of a thread; those under way at once

// Sums of y - shift and of its square, with each channel's first value as the shift: as exact as two passes, in one.
template <class S, int V>
__global__ void __launch_bounds__(kStatisticsThreads, 1)
    batch_sums(const __grid_constant__ BatchStatistics a, const __grid_constant__ Blocks blocks) {
  constexpr int threads = kStatisticsThreads;
  __shared__ double values[2 * V][threads];
  const int64_t from = blockIdx.x % blocks.parts * (threads * kStatisticsVectors) + threadIdx.x;
  const bool one_channel = blocks.kept == 1;
  double shift[V], sum[V] = {}, square[V] = {};
#pragma unroll
  for (int j = 0; j < V; ++j) {
    int64_t channel = blocks.group() * blocks.kept + (one_channel ? 0 : from % blocks.width * V + j);
    if (channel >= a.channels) channel = 0;  // the last group may be narrower
    shift[j] = static_cast<double>(widen(static_cast<const S*>(a.y)[channel * a.inner]));
  }
#pragma unroll 1
  for (int k = 0; k < kStatisticsVectors; k += kUnder) {
    Vector<S, V> y[kUnder];
    bool there[kUnder];
#pragma unroll
    for (int i = 0; i < kUnder; ++i) {
      const int64_t vector = blocks.vector(from + static_cast<int64_t>(k + i) * threads);
      there[i] = vector >= 0;
      if (there[i]) y[i] = load<S, V>(a.y, vector * V);
    }
#pragma unroll
    for (int i = 0; i < kUnder; ++i)
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const double d = there[i] ? static_cast<double>(widen(y[i].lane[j])) - shift[j] : 0;
        sum[j] += d;
        square[j] += d * d;
      }
  }
  if (one_channel)
#pragma unroll
    for (int j = 1; j < V; ++j) sum[0] += sum[j], square[0] += square[j];
  const int lanes = one_channel ? 1 : V;
#pragma unroll
  for (int j = 0; j < V; ++j) {
    if (j >= lanes) break;
    values[j][threadIdx.x] = sum[j];
    values[lanes + j][threadIdx.x] = square[j];
  }
  add_up(values, 2 * lanes, blocks, a.workspace);
}

template <class S>
struct StoreMoments {
  const S* y;
  int64_t inner;
  double count;
  double *mean, *variance;

  ESVAE_DEVICE void operator()(int64_t channel, const double (*sums)[kFinishThreads]) const {
    mean[channel] = batch_mean(static_cast<double>(widen(y[channel * inner])), sums[0][0], count);
    variance[channel] = batch_variance(sums[0][0], sums[1][0], count);
  }
};

template <class S, int V>
__global__ void __launch_bounds__(kThreads<S>, 1) batch_correction(const __grid_constant__ BatchCorrection a) {
  using R = State<S>;
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads<S> + threadIdx.x) * V;
  if (at >= a.size) return;
  const Vector<S, V> dx = load<S, V>(a.dx, at), y = load<S, V>(a.y, at);
  const R* const factors = static_cast<const R*>(a.factors);
  Run run(at, a.inner, a.channels);
  R dy[V];
#pragma unroll
  for (int j = 0; j < V; ++j, run.next())
    dy[j] = batch_corrected<R>(widen(dx.lane[j]), factors[run.number], widen(y.lane[j]), factors[a.channels + run.number]);
  store<S>(a.dy, at, dy);
}

template <class F>
void with_layout(const BatchStatistics& a, F&& f) {
  with_element(a.dtype, [&](auto zero) {
    with_vector<decltype(zero)>(run_of(a.channels, a.inner), {a.y}, [&](auto V) {
      f(zero, V, Blocks::of(a.size, a.channels, a.inner, V, kStatisticsThreads, kStatisticsVectors));
    });
  });
}

}  // namespace

namespace cuda {

void batch_statistics(const BatchStatistics& a) {
  if (a.size == 0) return;
  with_layout(a, [&](auto zero, auto V, const Blocks& blocks) {
    using S = decltype(zero);
    launch("batch_statistics", a.place, batch_sums<S, V>, blocks.count(), kStatisticsThreads, a, blocks);
    const StoreMoments<S> store{static_cast<const S*>(a.y), a.inner, static_cast<double>(a.size / a.channels), a.mean,
                                a.variance};
    launch("batch_statistics", a.place, finish<2, StoreMoments<S>>, a.channels, kFinishThreads,
           static_cast<const double*>(a.workspace), blocks.parts, 2, blocks.kept, store);
  });
}

int64_t batch_statistics_workspace(const BatchStatistics& a) {
  int64_t result = 0;
  if (a.size > 0) with_layout(a, [&](auto, auto, const Blocks& blocks) { result = blocks.sums(2); });
  return result;
}

void batch_correction(const BatchCorrection& a) {
  with_element(a.dtype, [&](auto zero) {
    using S = decltype(zero);
    with_vector<S>(a.size, {a.dx, a.y, a.dy}, [&](auto V) {
      launch("batch_correction", a.place, esvae::batch_correction<S, V>, divided_up(a.size, V * kThreads<S>),
             kThreads<S>, a);
    });
  });
}

}  // namespace cuda
}  // namespace esvae
