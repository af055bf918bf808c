// The LIF neuron over all time steps: a thread takes a block of neurons through the whole sequence, with their
// potentials in cache, a piece of a row at a time. Compiled once per vector width (ESVAE_ISA).
//
// Top-down: forward and backward at the end; they call row functions, each a vectorised loop over a piece, which are
// chosen by address once a call. So resets, spike functions and surrogates multiply only within a row.
#include "../math/lif.h"
#include "../math/surrogate.h"
#include "channels.h"
#include "kernels.h"
#include "parallel.h"
#include "rows.h"

namespace esvae {
namespace {

// The parameters of a piece's neurons: pointers to one value each, or to one per neuron (gain and bias, or all).
template <class R>
struct Neurons {
  const R *decay, *gain, *bias, *threshold, *v_reset, *synapse;
  PerChannel per_neuron;
  Reset reset;
  bool detach;
  SurrogateShape shape;
  R shift;

  Neurons from(int64_t i) const {
    Neurons p = *this;
    const int64_t affine = per_neuron == PerChannel::none ? 0 : i, all = per_neuron == PerChannel::all ? i : 0;
    p.decay += all, p.gain += affine, p.bias += affine, p.threshold += all, p.v_reset += all, p.synapse += all;
    return p;
  }
};

template <class R, bool per_neuron>
struct Parameter {
  R value;
  const R* values;
  explicit Parameter(const R* p) : value(*p), values(p) {}
  ESVAE_HD R operator[](int64_t i) const { return per_neuron ? values[i] : value; }
};

// ------------------------------------------------------------------------------------------------- row functions

enum Emit : int { kSpikes = 1, kMembranes = 2, kBoth = 3 };

// One time step of a piece.
template <class R>
using StepRow = void (*)(const Neurons<R>&, const R* x, R* v, R* s, R* m, int64_t n);

template <Reset reset, Fire how, PerChannel per, int emit, class R>
void step(const Neurons<R>& p, const R* x, R* v, R* s, R* m, int64_t n) {
  const Parameter<R, per != PerChannel::none> gain(p.gain), bias(p.bias);
  const Parameter<R, per == PerChannel::all> decay(p.decay), threshold(p.threshold), v_reset(p.v_reset);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const R earlier = lif_looks_back(reset) ? lif_fire(how, threshold[i], v[i]) : R(0);
    const R membrane = lif_membrane(reset, decay[i], gain[i], bias[i], threshold[i], v[i], x[i], earlier);
    const R spike = lif_fire(how, threshold[i], membrane);
    const R in_reset = lif_spike_in_reset(reset, how == Fire::several, spike);
    v[i] = lif_reset(reset, threshold[i], v_reset[i], membrane, in_reset, earlier);
    if (emit & kSpikes) s[i] = spike;
    if (emit & kMembranes) m[i] = membrane;
  }
}

template <Reset reset, Fire how, PerChannel per, class R>
StepRow<R> step_of(int emit) {
  if constexpr (how != Fire::several && reset != Reset::at_once) {  // the rarer ones are compiled once
    if (emit == kSpikes) return step<reset, how, per, kSpikes, R>;
    if (emit == kMembranes) return step<reset, how, per, kMembranes, R>;
  }
  return step<reset, how, per, kBoth, R>;
}
template <Reset reset, Fire how, class R>
StepRow<R> step_of(PerChannel per, int emit) {
  return per == PerChannel::none     ? step_of<reset, how, PerChannel::none, R>(emit)
         : per == PerChannel::affine ? step_of<reset, how, PerChannel::affine, R>(emit)
                                     : step_of<reset, how, PerChannel::all, R>(emit);
}
template <Reset reset, class R>
StepRow<R> step_of(Fire how, PerChannel per, int emit) {
  if constexpr (!lif_looks_back(reset))
    if (how == Fire::several) return step_of<reset, Fire::several, R>(per, emit);
  return how == Fire::above ? step_of<reset, Fire::above, R>(per, emit) : step_of<reset, Fire::at, R>(per, emit);
}
template <class R>
StepRow<R> step_of(Reset reset, Fire how, PerChannel per, int emit) {
  switch (reset) {
    case Reset::hard: return step_of<Reset::hard, R>(how, per, emit);
    case Reset::soft: return step_of<Reset::soft, R>(how, per, emit);
    case Reset::none: return step_of<Reset::none, R>(how, per, emit);
    case Reset::delayed: return step_of<Reset::delayed, R>(how, per, emit);
    case Reset::at_once: return step_of<Reset::at_once, R>(how, per, emit);
  }
  return nullptr;
}

// Of potentials m: the spikes, the surrogate's slope, its smooth stand-in for the spike.
template <class R>
using MembraneRow = void (*)(const Neurons<R>&, const R* m, R* out, int64_t n);

template <Fire how, bool per_neuron, class R>
void fire(const Neurons<R>& p, const R* m, R* s, int64_t n) {
  const Parameter<R, per_neuron> threshold(p.threshold);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) s[i] = lif_fire(how, threshold[i], m[i]);
}

template <class Surrogate, bool per_neuron, class R>
void slope(const Neurons<R>& p, const R* m, R* out, int64_t n) {
  const Surrogate surrogate(p.shape);
  const Parameter<R, per_neuron> threshold(p.threshold);
  const R shift = p.shift;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = surrogate.slope(m[i] - (threshold[i] + shift));
}

template <class Surrogate, bool per_neuron, class R>
void smooth(const Neurons<R>& p, const R* m, R* s, int64_t n) {
  const Surrogate surrogate(p.shape);
  const Parameter<R, per_neuron> threshold(p.threshold);
  for (int64_t i = 0; i < n; ++i) s[i] = surrogate.smooth(m[i] - (threshold[i] + p.shift));
}

// Whether an adjoint's spikes are given, or compared anew.
enum class Spikes { given, at, above };

// dm = dL/dm_t, from ds (times `weight`, the readout's), dv = dL/dv_t and what was recorded of the membrane; dv becomes
// dL/dv_{t-1}. `s` counts for Spikes::given alone, `later` for the delayed reset, `recorded` for `record`.
template <class R>
using AdjointRow = void (*)(const Neurons<R>&, const R* m, const R* s, const R* slope, const R* ds, R weight,
                            const R* recorded, const R* later, R* dv, R* dm, int64_t n);

template <Reset reset, bool per_neuron, bool detach, Spikes spikes, bool record, class R>
void adjoint(const Neurons<R>& p, const R* m, const R* s, const R* slope, const R* ds, R weight, const R* recorded,
             const R* later, R* dv, R* dm, int64_t n) {
  const Parameter<R, per_neuron> decay(p.decay), threshold(p.threshold), v_reset(p.v_reset);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const R spike = spikes == Spikes::given ? s[i] : lif_fire(spikes == Spikes::above ? Fire::above : Fire::at, threshold[i], m[i]);
    const R in_all = lif_spike_adjoint(reset, detach, threshold[i], v_reset[i], m[i], ds[i] * weight, dv[i],
                                       reset == Reset::delayed ? later[i] : R(0));
    const R through = lif_membrane_adjoint(reset, spike, in_all, slope[i], dv[i]);
    const R in_sum = record ? through + recorded[i] : through;
    dm[i] = in_sum;
    dv[i] = decay[i] * in_sum;
  }
}

template <Reset reset, bool per_neuron, bool detach, bool record, class R>
AdjointRow<R> adjoint_of(Spikes spikes) {
  return spikes == Spikes::given ? adjoint<reset, per_neuron, detach, Spikes::given, record, R>
         : spikes == Spikes::at  ? adjoint<reset, per_neuron, detach, Spikes::at, record, R>
                                 : adjoint<reset, per_neuron, detach, Spikes::above, record, R>;
}
template <Reset reset, bool per_neuron, class R>
AdjointRow<R> adjoint_of(bool detach, bool record, Spikes spikes) {
  if (detach) return record ? adjoint_of<reset, per_neuron, true, true, R>(spikes)
                            : adjoint_of<reset, per_neuron, true, false, R>(spikes);
  return record ? adjoint_of<reset, per_neuron, false, true, R>(spikes)
                : adjoint_of<reset, per_neuron, false, false, R>(spikes);
}
template <bool per_neuron, class R>
AdjointRow<R> adjoint_of(Reset reset, bool detach, bool record, Spikes spikes) {
  switch (reset) {
    case Reset::hard: return adjoint_of<Reset::hard, per_neuron, R>(detach, record, spikes);
    case Reset::at_once:  // the same
    case Reset::soft: return adjoint_of<Reset::soft, per_neuron, R>(detach, record, spikes);
    case Reset::none: return adjoint_of<Reset::none, per_neuron, R>(detach, record, spikes);
    case Reset::delayed: return adjoint_of<Reset::delayed, per_neuron, R>(detach, record, spikes);
  }
  return nullptr;
}

// dx = gain * dm.
template <bool per_neuron, class R>
void scale(const R* gain, const R* dm, R* dx, int64_t n) {
  const Parameter<R, per_neuron> g(gain);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) dx[i] = g[i] * dm[i];
}

// c = c_t from x_t and i = i_{t-1}, which becomes i_t.
template <bool per_neuron, class R>
void current(const Neurons<R>& p, const R* x, R* i, R* c, int64_t n) {
  const Parameter<R, per_neuron> synapse(p.synapse);
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    c[j] = lif_current(i[j], x[j]);
    i[j] = synapse[j] * c[j];
  }
}

// di = dL/di_t becomes dL/di_{t-1}, and that is dL/dx_t too.
template <bool per_neuron, class R>
void current_adjoint(const Neurons<R>& p, const R* dm, R* di, int64_t n) {
  const bool affine = p.per_neuron != PerChannel::none;
  const Parameter<R, per_neuron> synapse(p.synapse);
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) di[j] = lif_current_adjoint(p.gain[j * affine], synapse[j], dm[j], di[j]);
}

// The potentials after a reset are lifted to v_min, and nothing flows back to those that were: of v, as they are then.
template <class R>
void lift(R v_min, R* v, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) v[i] = lif_below(v_min, v[i]) ? v_min : v[i];
}
template <class R>
void lift_adjoint(R v_min, const R* v, R* dv, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) dv[i] = lif_below(v_min, v[i]) ? R(0) : dv[i];
}

template <class R>
struct RowFunctions {
  MembraneRow<R> fire, slope;
  AdjointRow<R> adjoint;
  void (*scale)(const R* gain, const R* dm, R* dx, int64_t n);
  void (*current)(const Neurons<R>&, const R* x, R* i, R* c, int64_t n);
  void (*current_adjoint)(const Neurons<R>&, const R* dm, R* di, int64_t n);
  bool needs_spikes;  // the adjoint, or what else asks for them
};

template <bool per_neuron, class R>
RowFunctions<R> row_functions(const Lif& a) {
  RowFunctions<R> f{};
  const Fire how = lif_fire_of(a.strict, a.several);
  f.fire = how == Fire::several ? fire<Fire::several, per_neuron, R>
           : how == Fire::above ? fire<Fire::above, per_neuron, R>
                                : fire<Fire::at, per_neuron, R>;
  with_surrogate<R>(static_cast<SurrogateId>(a.surrogate), {a.shape, a.scale}, [&](auto surrogate) {
    using S = decltype(surrogate);
    f.slope = slope<S, per_neuron, R>;
    if (a.smooth) f.fire = smooth<S, per_neuron, R>;
  });
  f.needs_spikes = a.smooth || a.several || a.dweights || a.wanted & (kThreshold | kVReset);
  const Spikes spikes = f.needs_spikes ? Spikes::given : a.strict ? Spikes::above : Spikes::at;
  f.adjoint = adjoint_of<per_neuron, R>(static_cast<Reset>(a.reset), a.detach_reset, a.dmembrane, spikes);
  f.scale = a.per_channel == PerChannel::none ? scale<false, R> : scale<true, R>;
  f.current = current<per_neuron, R>, f.current_adjoint = current_adjoint<per_neuron, R>;
  return f;
}

// --------------------------------------------------------------------------------------------- a block of neurons

template <class R>
void load_or_zero(R* dst, const void* src, int64_t offset, int64_t n) {
  if (src)
    memcpy(dst, static_cast<const R*>(src) + offset, n * sizeof(R));
  else
    memset(dst, 0, n * sizeof(R));
}

template <class R>
void store_state(void* dst, int64_t offset, const R* src, int64_t n) {
  if (dst) memcpy(static_cast<R*>(dst) + offset, src, n * sizeof(R));
}

// One time step with smooth spikes, whatever the options: for leaky integrators and numerical differentiation.
template <class R>
void smooth_step(const RowFunctions<R>& rows, const Neurons<R>& p, const R* x, R* v, R* s, R* m, int64_t n) {
  const bool all = p.per_neuron == PerChannel::all, affine = p.per_neuron != PerChannel::none;
  R earlier[kPiece];
  rows.fire(p, v, earlier, n);
  for (int64_t i = 0; i < n; ++i)
    m[i] = lif_membrane(p.reset, p.decay[i * all], p.gain[i * affine], p.bias[i * affine], p.threshold[i * all], v[i],
                        x[i], earlier[i]);
  rows.fire(p, m, s, n);
  for (int64_t i = 0; i < n; ++i)
    v[i] = lif_reset(p.reset, p.threshold[i * all], p.v_reset[i * all], m[i], s[i], earlier[i]);
}

// What a call's blocks share.
template <class R>
struct Plan {
  const Lif& a;
  Channels channels;
  RowIo<R> x_io, out_io;
  RowFunctions<R> rows;
  int64_t block, potentials;  // elements of the potentials in `saved`: behind them are the synaptic currents
  bool lifts;
  R v_min, readout_weight;  // of a rate

  explicit Plan(const Lif& call)
      : a(call), channels{call.channels, call.inner}, x_io(row_io<R>(call.x_dtype)), out_io(row_io<R>(call.out_dtype)),
        rows(call.per_channel == PerChannel::all ? row_functions<true, R>(call) : row_functions<false, R>(call)),
        block(block_size<R>(call.size)), potentials((call.steps - 1) / kChunk * call.size), lifts(lif_lifts(call.v_min)),
        v_min(static_cast<R>(call.v_min)), readout_weight(R(1) / static_cast<R>(call.steps)) {}

  StepRow<R> step(int emit) const {
    return step_of<R>(static_cast<Reset>(a.reset), lif_fire_of(a.strict, a.several), a.per_channel, emit);
  }
  // One time step of a piece of neurons; with a synapse c becomes the current that enters the membrane in the place of x.
  void advance(StepRow<R> step, const Neurons<R>& p, const R* x, R* v, R* i, R* c, R* s, R* m, int64_t n) const {
    if (a.synaptic) rows.current(p, x, i, c, n);
    if (a.smooth)
      smooth_step(rows, p, a.synaptic ? c : x, v, s, m, n);
    else
      step(p, a.synaptic ? c : x, v, s, m, n);
    if (lifts) lift(v_min, v, n);
  }
  R weight(int64_t t) const {
    return a.readout == Readout::weights ? static_cast<R>(a.weights[t]) : a.readout == Readout::rate ? readout_weight : R(1);
  }
};

// The parameters of a block, spread over its neurons where they are per channel.
template <class R>
struct BlockParameters {
  R* row[kParameters];  // null: a number
  R number[kParameters];

  BlockParameters(Rows& rows, const Plan<R>& plan) {
    for (int k = 0; k < kParameters; ++k) {
      const bool affine = k == 1 || k == 2;
      const PerChannel per = plan.a.per_channel;
      row[k] = rows.take<R>(plan.block, per == PerChannel::all || (per == PerChannel::affine && affine));
      number[k] = static_cast<R>(plan.a.numbers[k]);
    }
  }

  Neurons<R> operator()(const Plan<R>& plan, int64_t begin, int64_t n) const {
    const Lif& a = plan.a;
    const R* values[kParameters];
    for (int k = 0; k < kParameters; ++k) {
      if (row[k]) plan.channels.spread(static_cast<const R*>(a.parameters) + k * a.channels, begin, n, row[k]);
      values[k] = row[k] ? row[k] : number + k;
    }
    return {values[0], values[1], values[2], values[3], values[4], values[5], a.per_channel,
            static_cast<Reset>(a.reset), a.detach_reset, {a.shape, a.scale}, static_cast<R>(a.shift)};
  }
};

// ------------------------------------------------------------------------------------------------------- forward

template <class R>
struct ForwardRows {
  BlockParameters<R> parameters;
  R *v, *current, *sum;
  double* counted;  // what `sum` held every kCounted steps, of a rate over more

  ForwardRows(Rows& rows, const Plan<R>& plan)
      : parameters(rows, plan), v(rows.take<R>(plan.block)), current(rows.take<R>(plan.block, plan.a.synaptic)),
        sum(rows.take<R>(plan.block, plan.a.readout != Readout::none)),
        counted(rows.take<double>(plan.block, plan.a.readout == Readout::rate && plan.a.steps > kCounted)) {}
};

// A count in the state's type starts anew: it is added to one in fp64.
template <class R>
void count_on(R* sum, double* counted, int64_t n) {
  for (int64_t i = 0; i < n; ++i) counted[i] += static_cast<double>(sum[i]), sum[i] = 0;
}

// The mean over time from the count.
template <class R>
void divide(R* sum, double* counted, int64_t steps, int64_t n) {
  if (!counted) {
    for (int64_t i = 0; i < n; ++i) sum[i] /= static_cast<R>(steps);
    return;
  }
  count_on(sum, counted, n);
  for (int64_t i = 0; i < n; ++i) sum[i] = static_cast<R>(counted[i] / static_cast<double>(steps));
}

template <class R>
void forward(const Lif& a) {
  const Plan<R> plan(a);
  const StepRow<R> step = plan.step(a.membrane ? kBoth : kSpikes);
  const auto store = a.smooth || a.several ? plan.out_io.store : plan.out_io.store_spikes;
  const bool stream = a.readout == Readout::none && a.steps * a.size * plan.out_io.bytes >= kStreamBytes;
  const bool stream_membrane = a.steps * a.size * static_cast<int64_t>(sizeof(R)) >= kStreamBytes;
  const auto rows = [&](Rows& memory) { return ForwardRows<R>(memory, plan); };
  parallel_blocks(a.size, plan.block, a.place.threads, rows, [&](const ForwardRows<R>& row, int64_t begin, int64_t n) {
    alignas(64) R s[kPiece], m[kPiece], c[kPiece], buffer[kPiece];
    R *const v = row.v, *const current = row.current, *const sum = row.sum;
    const Neurons<R> neurons = row.parameters(plan, begin, n);
    load_or_zero(v, a.v0, begin, n);
    if (a.synaptic) load_or_zero(current, a.i0, begin, n);
    if (sum) memset(sum, 0, n * sizeof(R));
    if (row.counted) memset(row.counted, 0, n * sizeof(double));
    for (int64_t t = 0; t < a.steps; ++t) {
      if (t > 0 && t % kChunk == 0) {
        const int64_t at = (t / kChunk - 1) * a.size + begin;
        store_state(a.saved, at, v, n);
        if (a.synaptic) store_state(a.saved, plan.potentials + at, current, n);
        if (row.counted && t % kCounted == 0) count_on(sum, row.counted, n);
      }
      const R weight = a.readout == Readout::weights ? plan.weight(t) : R(1);
      for_pieces(n, [&](int64_t i, int64_t k) {
        const int64_t at = t * a.size + begin + i;
        if (t + kAhead < a.steps) plan.x_io.prefetch(a.x, (t + kAhead) * a.x_stride + begin + i, k);
        const R* x = plan.x_io.load(a.x, t * a.x_stride + begin + i, buffer, k);
        plan.advance(step, neurons.from(i), x, v + i, element(current, i), c, s, m, k);
        if (a.membrane) store_row(static_cast<R*>(a.membrane) + at, m, k, stream_membrane);
        if (a.readout == Readout::none)
          store(a.out, at, s, k, stream);
        else
          for (int64_t j = 0; j < k; ++j) sum[i + j] += weight * s[j];
      });
    }
    if (a.readout == Readout::rate) divide(sum, row.counted, a.steps, n);
    if (a.readout != Readout::none) plan.out_io.store(a.out, begin, sum, n, false);
    store_state(a.v, begin, v, n);
    store_state(a.i, begin, current, n);
    stream_fence(stream || stream_membrane);
  });
}

// ------------------------------------------------------------------------------------------------------ backward

// Sums over time of the parameters' gradients, per neuron; at the end of a block they are gathered by channel.
template <class R>
struct ParameterGradients {
  R* row[kParameters];  // null: not wanted

  ParameterGradients(Rows& rows, int wanted, int64_t block) {
    for (int k = 0; k < kParameters; ++k)
      row[k] = rows.take<R>(block, wanted >> k & 1 || ((k == 1 || k == 2) && wanted & (kGain | kRest)));
  }

  void clear(int64_t n) const {
    for (R* values : row)
      if (values) memset(values, 0, n * sizeof(R));
  }

  // What goes through the spike: before dv becomes the gradient of the step before.
  void add_spikes(const Lif& a, const Neurons<R>& p, const R* m, const R* s, const R* slope, const R* ds, R weight,
                  const R* dv, const R* later, int64_t at, int64_t n) const {
    const bool all = p.per_neuron == PerChannel::all;
    if (a.wanted & kThreshold)
      for (int64_t i = 0; i < n; ++i) {
        const R in_all = lif_spike_adjoint(p.reset, p.detach, p.threshold[i * all], p.v_reset[i * all], m[i],
                                           ds[i] * weight, dv[i], later[i]);
        row[3][at + i] -= lif_threshold_adjoint(p.reset, s[i], in_all, slope[i], dv[i]);
      }
    if (a.wanted & kVReset && p.reset == Reset::hard)
      for (int64_t i = 0; i < n; ++i) row[4][at + i] += dv[i] * s[i];
  }

  // What goes through the membrane potential; v is that before the step, c the current. Gain and bias come together or
  // not at all.
  void add_membranes(const Lif& a, const Neurons<R>& p, const RowFunctions<R>& rows, const R* dm, const R* v, const R* c,
                     const R* center, const R* through_earlier, int64_t at, int64_t n) const {
    if (a.wanted & kDecay)
      for (int64_t i = 0; i < n; ++i) row[0][at + i] += dm[i] * v[i];
    if (a.wanted & (kGain | kRest)) {
      R *gain = row[1] + at, *bias = row[2] + at;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        gain[i] += dm[i] * (c[i] - center[i]);
        bias[i] += dm[i];
      }
    }
    if (a.wanted & kThreshold && lif_looks_back(p.reset)) {
      R earlier[kPiece];
      rows.fire(p, v, earlier, n);
      for (int64_t i = 0; i < n; ++i) row[3][at + i] -= through_earlier[i] * earlier[i];
    }
  }

  // What goes through the synapse: di is that of i_t.
  void add_currents(const Lif& a, const R* di, const R* c, int64_t at, int64_t n) const {
    if (a.wanted & kSynapse)
      for (int64_t i = 0; i < n; ++i) row[5][at + i] += di[i] * c[i];
  }
};

// Where the parts of sums over blocks lie in the workspace: the parameters' first, then the readout weights'.
struct Sums {
  ChannelSums parameters;
  int of[kParameters];  // wanted parameter -> number of its sum
  int64_t blocks, weights_at;

  Sums(const Lif& a, int64_t block) : parameters({a.channels, a.inner}, block, count(a.wanted)) {
    for (int k = 0, sum = 0; k < kParameters; ++k) of[k] = a.wanted >> k & 1 ? sum++ : -1;
    blocks = (a.size + block - 1) / block;
    weights_at = parameters.workspace(a.size);
  }
  static int count(int bits) {
    int n = 0;
    for (; bits; bits &= bits - 1) ++n;
    return n;
  }
  void finish(const Lif& a) const {
    int parameter[kParameters];
    for (int k = 0; k < kParameters; ++k)
      if (of[k] >= 0) parameter[of[k]] = k;
    parameters.finish(a.workspace, a.size, [&](int sum) { return a.dparameters + parameter[sum] * a.channels; });
    for (int64_t t = 0; a.dweights && t < a.steps; ++t) {
      a.dweights[t] = 0;
      for (int64_t b = 0; b < blocks; ++b) a.dweights[t] += a.workspace[weights_at + b * a.steps + t];
    }
  }
};

template <class R>
double dot(const R* a, const R* b, int64_t n) {
  R product[kPiece];
  for (int64_t i = 0; i < n; ++i) product[i] = a[i] * b[i];
  return ChannelSums::total(product, n);
}

// What is kept of each step of a chunk for the way back.
template <class R>
struct ChunkRows {
  R* first;
  int64_t block;

  ChunkRows(Rows& rows, int64_t block, bool wanted = true)
      : first(rows.take<R>(kChunk * block, wanted)), block(block) {}
  R* operator()(int64_t k, int64_t i) const { return element(first, k * block + i); }
};

// What a backward keeps beside dx.
template <class R>
struct Kept {
  bool v, c;  // the potentials before each step, the currents behind a synapse

  explicit Kept(const Plan<R>& plan) {
    const int wanted = plan.a.wanted;
    v = wanted & kDecay || (lif_looks_back(static_cast<Reset>(plan.a.reset)) && wanted & kThreshold) || plan.lifts;
    c = wanted & (kGain | kRest | kSynapse) && plan.a.synaptic;
  }
};

template <class R>
struct BackwardRows {
  BlockParameters<R> parameters;
  ParameterGradients<R> gradients;
  ChunkRows<R> m, v_before, c;
  R *v, *current, *dv, *di, *later, *dx_sum, *center;

  BackwardRows(Rows& rows, const Plan<R>& plan, Kept<R> keep)
      : parameters(rows, plan), gradients(rows, plan.a.wanted, plan.block), m(rows, plan.block),
        v_before(rows, plan.block, keep.v), c(rows, plan.block, keep.c), v(rows.take<R>(plan.block)),
        current(rows.take<R>(plan.block, plan.a.synaptic)), dv(rows.take<R>(plan.block)),
        di(rows.take<R>(plan.block, plan.a.synaptic)), later(rows.take<R>(plan.block)),
        dx_sum(rows.take<R>(plan.block, plan.a.x_stride == 0)), center(rows.take<R>(plan.block)) {}
};

template <class R>
void backward(const Lif& a) {
  const Plan<R> plan(a);
  const StepRow<R> step = plan.step(kMembranes);
  const Sums sums(a, plan.block);
  const bool constant = a.x_stride == 0;
  const Reset reset = static_cast<Reset>(a.reset);
  const bool through_earlier = reset == Reset::delayed && !a.detach_reset;
  const bool looks_back = lif_looks_back(reset);
  const Kept<R> keep(plan);
  const bool needs_x = a.wanted & (kGain | kRest) && !a.synaptic;
  const bool unit_gain = a.per_channel == PerChannel::none && a.numbers[1] == 1;
  const int64_t dout_stride = a.readout == Readout::none ? a.size : 0;
  const int64_t chunks = (a.steps + kChunk - 1) / kChunk;
  const bool stream = !constant && a.steps * a.size * plan.x_io.bytes >= kStreamBytes;
  const auto rows = [&](Rows& memory) { return BackwardRows<R>(memory, plan, keep); };
  parallel_blocks(a.size, plan.block, a.place.threads, rows, [&](const BackwardRows<R>& row, int64_t begin, int64_t n) {
    const ParameterGradients<R> gradients = row.gradients;
    const ChunkRows<R> m = row.m, v_before = row.v_before, c = row.c;
    R *const v = row.v, *const current = row.current, *const dv = row.dv, *const di = row.di, *const later = row.later,
      *const dx_sum = row.dx_sum, *const center = row.center;
    alignas(64) R s[kPiece], slope[kPiece], dm[kPiece], dv_after[kPiece], through[kPiece], dx[kPiece], x_buffer[kPiece],
        buffer[kPiece], zero[kPiece];
    const Neurons<R> neurons = row.parameters(plan, begin, n);
    memset(zero, 0, sizeof zero);
    gradients.clear(n);
    load_or_zero(dv, a.dv, begin, n);
    if (a.synaptic) load_or_zero(di, a.di, begin, n);
    memset(later, 0, n * sizeof(R));
    if (constant) memset(dx_sum, 0, n * sizeof(R));
    if (a.wanted) sums.parameters.clear(a.workspace, begin);
    memset(center, 0, n * sizeof(R));
    if (a.center_of_x) plan.channels.spread(static_cast<const R*>(a.center_of_x), begin, n, center);

    const auto recompute = [&](int64_t first, int64_t last) {
      const int64_t at = first ? (first / kChunk - 1) * a.size + begin : begin;
      load_or_zero(v, first ? a.saved : a.v0, at, n);
      if (a.synaptic) load_or_zero(current, first ? a.saved : a.i0, first ? plan.potentials + at : at, n);
      for (int64_t t = first; t < last; ++t)
        for_pieces(n, [&](int64_t i, int64_t k) {
          if (t + kAhead < last) plan.x_io.prefetch(a.x, (t + kAhead) * a.x_stride + begin + i, k);
          const R* x = plan.x_io.load(a.x, t * a.x_stride + begin + i, x_buffer, k);
          if (keep.v) memcpy(v_before(t - first, i), v + i, k * sizeof(R));
          R* const c_row = keep.c ? c(t - first, i) : buffer;
          plan.advance(step, neurons.from(i), x, v + i, element(current, i), c_row, s, m(t - first, i), k);
        });
    };

    // Through the spike at v_t, that step t + 1 subtracts.
    const auto earlier_spike_back = [&](const R* v, int64_t i, int64_t k) {
      plan.rows.slope(neurons.from(i), v, slope, k);
      for (int64_t j = 0; j < k; ++j) {
        dv[i + j] += later[i + j] * slope[j];
        if (a.wanted & kThreshold) gradients.row[3][i + j] -= later[i + j] * slope[j];
        later[i + j] = 0;
      }
    };

    const auto step_back = [&](int64_t first, int64_t t, const R* v_after, int64_t i, int64_t k) {
      if (plan.lifts) {
        if (through_earlier) earlier_spike_back(v_after, i, k);
        lift_adjoint(plan.v_min, v_after, dv + i, k);
      }
      const Neurons<R> p = neurons.from(i);
      const R* membrane = m(t - first, i);
      const R weight = plan.weight(t);
      const int64_t at = t * a.size + begin + i;
      const R* ds = a.dout ? plan.out_io.load(a.dout, t * dout_stride + begin + i, buffer, k) : zero;
      const R* recorded = a.dmembrane ? static_cast<const R*>(a.dmembrane) + at : nullptr;
      plan.rows.slope(p, membrane, slope, k);
      if (plan.rows.needs_spikes) plan.rows.fire(p, membrane, s, k);
      if (a.dweights) a.workspace[sums.weights_at + begin / plan.block * a.steps + t] += dot(ds, s, k);
      if (a.several)
        for (int64_t j = 0; j < k; ++j) s[j] = lif_spike_in_reset(reset, true, s[j]);
      if (a.wanted & (kThreshold | kVReset))
        gradients.add_spikes(a, p, membrane, s, slope, ds, weight, dv + i, later + i, i, k);
      if (looks_back) memcpy(dv_after, dv + i, k * sizeof(R));
      plan.rows.adjoint(p, membrane, s, slope, ds, weight, recorded, later + i, dv + i, dm, k);
      if (looks_back) {
        const bool all = p.per_neuron == PerChannel::all;
        for (int64_t j = 0; j < k; ++j) {
          through[j] = lif_earlier_adjoint(reset, dm[j], dv_after[j]);
          later[i + j] = -p.threshold[j * all] * through[j];
        }
      }
      const R* x = keep.c ? c(t - first, i) : needs_x ? plan.x_io.load(a.x, t * a.x_stride + begin + i, x_buffer, k) : zero;
      if (a.synaptic) {
        gradients.add_currents(a, di + i, x, i, k);
        plan.rows.current_adjoint(p, dm, di + i, k);
      }
      if (a.dx) {
        const bool scaled = !a.synaptic && !unit_gain;
        if (scaled) plan.rows.scale(p.gain, dm, dx, k);
        const R* result = a.synaptic ? di + i : scaled ? dx : dm;
        if (constant)
          for (int64_t j = 0; j < k; ++j) dx_sum[i + j] += result[j];
        else
          plan.x_io.store(a.dx, at, result, k, stream);
      }
      if (a.wanted)
        gradients.add_membranes(a, p, plan.rows, dm, v_before(t - first, i), x, center + i, through, i, k);
    };

    for (int64_t t = 0; a.dweights && t < a.steps; ++t)
      a.workspace[sums.weights_at + begin / plan.block * a.steps + t] = 0;
    for (int64_t c = chunks - 1; c >= 0; --c) {
      const int64_t first = c * kChunk, last = first + kChunk < a.steps ? first + kChunk : a.steps;
      recompute(first, last);
      for (int64_t t = last - 1; t >= first; --t)
        for_pieces(n, [&](int64_t i, int64_t k) {
          if (a.dout && t - kAhead >= first)
            plan.out_io.prefetch(a.dout, (t - kAhead) * dout_stride + begin + i, k);
          step_back(first, t, t + 1 < last ? v_before(t + 1 - first, i) : v + i, i, k);
        });
    }
    if (through_earlier) {  // the first step's earlier spike is that at v0
      load_or_zero(v, a.v0, begin, n);
      for_pieces(n, [&](int64_t i, int64_t k) { earlier_spike_back(v + i, i, k); });
    }
    if (constant && a.dx) plan.x_io.store(a.dx, begin, dx_sum, n, false);
    store_state(a.dv0, begin, dv, n);
    store_state(a.di0, begin, di, n);
    for (int k = 0; k < kParameters; ++k)
      if (sums.of[k] >= 0) sums.parameters.gather(a.workspace, sums.of[k], begin, gradients.row[k], n);
    stream_fence(stream);
  });
  if (a.wanted || a.dweights) sums.finish(a);
}

}  // namespace

namespace ESVAE_ISA {

void lif_forward(const Lif& a) {
  with_state(a.x_dtype, [&](auto zero) { forward<decltype(zero)>(a); });
}

void lif_backward(const Lif& a) {
  with_state(a.x_dtype, [&](auto zero) { backward<decltype(zero)>(a); });
}

int64_t lif_workspace(const Lif& a) {
  int64_t result = 0;
  with_state(a.x_dtype, [&](auto zero) {
    const Sums sums(a, block_size<decltype(zero)>(a.size));
    result = sums.weights_at + (a.dweights ? sums.blocks * a.steps : 0);
  });
  return result;
}

}  // namespace ESVAE_ISA
}  // namespace esvae
