// One time step of the leaky integrate-and-fire neuron and its adjoint (esvae_kernels/ops/lif/reference.py is the
// specification). The operations and their order are part of it: no fused multiply-add, so that spikes and the bits of v
// are the same on every backend.
#pragma once
#include "surrogate.h"

namespace esvae {
namespace {

enum class Reset : int { hard = 0, soft = 1 };

template <class R>
struct LifParams {
  R decay, gain, rest, threshold, v_reset;
  R center;  // threshold + the surrogate's offset
  bool strict, detach_reset;
};

template <class R>
ESVAE_HD R lif_membrane(const LifParams<R>& p, R v, R x) {
  return p.decay * v + p.gain * x + p.rest;
}

template <bool strict, class R>
ESVAE_HD R lif_fire(const LifParams<R>& p, R m) {
  return (strict ? m > p.threshold : m >= p.threshold) ? R(1) : R(0);
}

template <Reset reset, class R>
ESVAE_HD R lif_reset(const LifParams<R>& p, R m, R s) {
  return reset == Reset::hard ? m * (R(1) - s) + p.v_reset * s : m - p.threshold * s;
}

// dL/dm from dL/ds and dL/dv, the gradient that arrives at the potential after the reset.
template <Reset reset, class R>
ESVAE_HD R lif_adjoint(const LifParams<R>& p, R m, R s, R slope, R ds, R dv) {
  if (!p.detach_reset) ds += dv * (reset == Reset::hard ? p.v_reset - m : -p.threshold);
  return ds * slope + (reset == Reset::hard ? dv * (R(1) - s) : dv);
}

}  // namespace
}  // namespace esvae
