// One time step of the leaky integrate-and-fire neuron and its adjoint (esvae_kernels/ops/lif/reference.py is the
// specification). The operations and their order are part of it: no fused multiply-add, so that spikes and the bits of v
// are the same on every backend. Everything is inlined: a `reset` that is known when compiling costs nothing.
#pragma once
#include "macros.h"

namespace esvae {
namespace {

enum class Reset : int { hard = 0, soft = 1, none = 2, delayed = 3 };

template <class R>
ESVAE_HD R lif_fire(bool strict, R threshold, R m) {
  return (strict ? m > threshold : m >= threshold) ? R(1) : R(0);
}

// m_t from v_{t-1}; `earlier` is the spike at v_{t-1}, which only the delayed reset looks at.
template <class R>
ESVAE_HD R lif_membrane(Reset reset, R decay, R gain, R rest, R threshold, R v, R x, R earlier) {
  const R m = decay * v + (gain * x + rest);
  return reset == Reset::delayed ? m - threshold * earlier : m;
}

// v_t.
template <class R>
ESVAE_HD R lif_reset(Reset reset, R threshold, R v_reset, R m, R s) {
  switch (reset) {
    case Reset::hard: return m * (R(1) - s) + v_reset * s;
    case Reset::soft: return m - threshold * s;
    default: return m;
  }
}

// dL/ds_t in all: from the output (ds) and through the reset, from dv = dL/dv_t, or for the delayed reset from
// later = dL/d(earlier spike) of the next step.
template <class R>
ESVAE_HD R lif_spike_adjoint(Reset reset, bool detach, R threshold, R v_reset, R m, R ds, R dv, R later) {
  if (detach) return ds;
  switch (reset) {
    case Reset::hard: return ds + dv * (v_reset - m);
    case Reset::soft: return ds - dv * threshold;
    case Reset::none: return ds;
    case Reset::delayed: return ds + later;
  }
  return ds;
}

// dL/dm_t; dL/dv_{t-1} = decay * dL/dm_t, dL/dx_t = gain * dL/dm_t.
template <class R>
ESVAE_HD R lif_membrane_adjoint(Reset reset, R s, R ds_in_all, R slope, R dv) {
  return ds_in_all * slope + (reset == Reset::hard ? dv * (R(1) - s) : dv);
}

// -dL/dthreshold through this step's spike.
template <class R>
ESVAE_HD R lif_threshold_adjoint(Reset reset, R s, R ds_in_all, R slope, R dv) {
  return ds_in_all * slope + (reset == Reset::soft ? dv * s : R(0));
}

}  // namespace
}  // namespace esvae
