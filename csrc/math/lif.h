// One time step of the leaky integrate-and-fire neuron and its adjoint (esvae_kernels/ops/lif/reference.py is the
// specification). The operations and their order are part of it: no fused multiply-add, so that spikes and the bits of v
// are the same on every backend. Everything is inlined: a `reset` that is known when compiling costs nothing.
#pragma once
#include <cmath>

#include "macros.h"

namespace esvae {
namespace {

enum class Reset : int { hard = 0, soft = 1, none = 2, delayed = 3, at_once = 4 };
enum class Fire : int { at, above, several };  // at the threshold too, above it only, once per threshold

// Whether m_t depends on `earlier`, the spike at v_{t-1}.
ESVAE_HD constexpr bool lif_looks_back(Reset reset) { return reset == Reset::delayed || reset == Reset::at_once; }

ESVAE_HD constexpr Fire lif_fire_of(bool strict, bool several) {
  return several ? Fire::several : strict ? Fire::above : Fire::at;
}

// c_t from i_{t-1} and x_t. i_t = synapse * c_t.
template <class R>
ESVAE_HD R lif_current(R i, R x) {
  return i + x;
}

template <class R>
ESVAE_HD R lif_fire(Fire fire, R threshold, R m) {
  switch (fire) {
    case Fire::several: return m > R(0) ? std::trunc(m / threshold) : R(0);
    case Fire::above: return m > threshold ? R(1) : R(0);
    default: return m >= threshold ? R(1) : R(0);
  }
}

// m_t from v_{t-1} and the current x.
template <class R>
ESVAE_HD R lif_membrane(Reset reset, R decay, R gain, R bias, R threshold, R v, R x, R earlier) {
  const R m = decay * v + (gain * x + bias);
  return lif_looks_back(reset) ? m - threshold * earlier : m;
}

// What the reset sees of `several` spikes: the hard one, whether there was any.
template <class R>
ESVAE_HD R lif_spike_in_reset(Reset reset, bool several, R s) {
  return several && reset == Reset::hard && s > R(1) ? R(1) : s;
}

// v_t.
template <class R>
ESVAE_HD R lif_reset(Reset reset, R threshold, R v_reset, R m, R s, R earlier) {
  switch (reset) {
    case Reset::hard: return m * (R(1) - s) + v_reset * s;
    case Reset::soft: return m - threshold * s;
    case Reset::at_once: return m - threshold * (s - earlier);
    default: return m;
  }
}

// Whether there is a v_min, and whether a potential is lifted to it. Of v_t = v_min the same can be asked again.
ESVAE_HD bool lif_lifts(double v_min) { return v_min > -INFINITY; }
template <class R>
ESVAE_HD bool lif_below(R v_min, R v) {
  return v <= v_min;
}

// dL/ds_t in all: from the output (ds) and through the reset, from dv = dL/dv_t, or for the delayed reset from
// later = dL/d(earlier spike) of the next step.
template <class R>
ESVAE_HD R lif_spike_adjoint(Reset reset, bool detach, R threshold, R v_reset, R m, R ds, R dv, R later) {
  if (detach) return ds;
  switch (reset) {
    case Reset::hard: return ds + dv * (v_reset - m);
    case Reset::soft:
    case Reset::at_once: return ds - dv * threshold;
    case Reset::none: return ds;
    case Reset::delayed: return ds + later;
  }
  return ds;
}

// dL/dm_t; dL/dv_{t-1} = decay * dL/dm_t, dL/dc_t = gain * dL/dm_t.
template <class R>
ESVAE_HD R lif_membrane_adjoint(Reset reset, R s, R ds_in_all, R slope, R dv) {
  return ds_in_all * slope + (reset == Reset::hard ? dv * (R(1) - s) : dv);
}

// -dL/dthreshold through this step's spike.
template <class R>
ESVAE_HD R lif_threshold_adjoint(Reset reset, R s, R ds_in_all, R slope, R dv) {
  return ds_in_all * slope + (reset == Reset::soft || reset == Reset::at_once ? dv * s : R(0));
}

// -dL/d(threshold * earlier spike): through m_t, and at once through v_t too.
template <class R>
ESVAE_HD R lif_earlier_adjoint(Reset reset, R dm, R dv) {
  return reset == Reset::at_once ? dm - dv : dm;
}

// dL/dc_t, from dL/dm_t and di = dL/di_t; dL/dx_t and dL/di_{t-1} are the same.
template <class R>
ESVAE_HD R lif_current_adjoint(R gain, R synapse, R dm, R di) {
  return gain * dm + synapse * di;
}

}  // namespace
}  // namespace esvae
