// Batch norm's per-channel arithmetic: mean and biased variance from the sums of y - shift and of its square, all fp64,
// and what they add to the gradient of y.
#pragma once
#include "macros.h"

namespace esvae {
namespace {

ESVAE_HD double batch_mean(double shift, double sum, double count) { return shift + sum / count; }

ESVAE_HD double batch_variance(double sum, double square, double count) {
  const double variance = (square - sum * sum / count) / count;
  return variance < 0 ? 0 : variance;
}

template <class R>
ESVAE_HD R batch_corrected(R dx, R factor, R y, R offset) {
  return dx + (factor * y + offset);
}

}  // namespace
}  // namespace esvae
