// Neurons and their channels: parameters spread from channels to the neurons of a block, sums gathered back.
#pragma once
#include <cstdint>

namespace esvae {
namespace {

// Neuron i of a row is of channel (i / inner) % channels; inner is 1 for channels-last.
struct Channels {
  int64_t count, inner;

  // f(channel, i, n) for each run of n neurons from `begin + i` on: of one channel, or for inner = 1 of the consecutive
  // channels from `channel` on.
  template <class F>
  void runs(int64_t begin, int64_t size, F&& f) const {
    const bool last = inner == 1;
    const int64_t length = last ? count : inner;
    int64_t within = begin % length, channel = last ? within : begin / inner % count;
    for (int64_t i = 0; i < size;) {
      const int64_t n = length - within < size - i ? length - within : size - i;
      f(channel, i, n);
      i += n;
      within = 0;
      channel = last || channel + 1 == count ? 0 : channel + 1;
    }
  }

  template <class R>
  void spread(const R* values, int64_t begin, int64_t size, R* row) const {
    runs(begin, size, [&](int64_t channel, int64_t i, int64_t n) {
      for (int64_t j = 0; j < n; ++j) row[i + j] = values[inner == 1 ? channel + j : channel];
    });
  }
};

// Sums by channel in two stages, so that they do not depend on how blocks are shared among threads: each block adds up
// its own in fp64 into a part of the workspace, then the parts are added in their order. `sums` per channel at once.
class ChannelSums {
 public:
  ChannelSums(Channels channels, int64_t block, int sums)
      : channels_(channels), block_(block), sums_(sums), kept_(block / channels.inner + 2) {
    if (kept_ > channels.count) kept_ = channels.count;
  }

  int64_t workspace(int64_t size) const { return (size + block_ - 1) / block_ * sums_ * kept_; }

  // Adds row[0 .. size-1], the neurons of the block at `begin`, to its sum number `sum`, which `clear` has set to zero.
  template <class R>
  void gather(double* workspace, int sum, int64_t begin, const R* row, int64_t size) const {
    channels_.runs(begin, size, [&](int64_t channel, int64_t i, int64_t n) {
      double* const to = at(workspace, sum, begin, channel);
      if (channels_.inner > 1)
        *to += total(row + i, n);
      else
        for (int64_t j = 0; j < n; ++j) to[j] += static_cast<double>(row[i + j]);
    });
  }

  // Where the block at `begin` adds up sum number `sum` of a channel; those of consecutive channels follow each other.
  double* at(double* workspace, int sum, int64_t begin, int64_t channel) const {
    return part_of(workspace, begin) + sum * kept_ + slot(channel, first_of(begin));
  }

  void clear(double* workspace, int64_t begin) const {
    double* part = part_of(workspace, begin);
    for (int64_t k = 0; k < sums_ * kept_; ++k) part[k] = 0;
  }

  // out[sum][channel], by `where(sum)`, from all blocks of `size` neurons.
  template <class F>
  void finish(const double* workspace, int64_t size, F&& where) const {
    for (int sum = 0; sum < sums_; ++sum)
      for (int64_t c = 0; c < channels_.count; ++c) where(sum)[c] = 0;
    for (int64_t begin = 0; begin < size; begin += block_) {
      const double* part = workspace + begin / block_ * sums_ * kept_;
      const int64_t first = first_of(begin);
      for (int sum = 0; sum < sums_; ++sum)
        for (int64_t k = 0; k < kept_; ++k) where(sum)[(first + k) % channels_.count] += part[sum * kept_ + k];
    }
  }

  // In 16 parts side by side, which vectorises without reordering anything.
  template <class R>
  static double total(const R* row, int64_t n) {
    double lanes[16] = {};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
      for (int64_t j = 0; j < 16; ++j) lanes[j] += static_cast<double>(row[i + j]);
    double sum = 0;
    for (; i < n; ++i) sum += static_cast<double>(row[i]);
    for (int64_t j = 0; j < 16; ++j) sum += lanes[j];
    return sum;
  }

 private:
  double* part_of(double* workspace, int64_t begin) const { return workspace + begin / block_ * sums_ * kept_; }
  int64_t first_of(int64_t begin) const { return kept_ == channels_.count ? 0 : begin / channels_.inner % channels_.count; }
  int64_t slot(int64_t channel, int64_t first) const {
    return channel < first ? channel - first + channels_.count : channel - first;
  }

  Channels channels_;
  int64_t block_;
  int sums_;
  int64_t kept_;
};

}  // namespace
}  // namespace esvae
