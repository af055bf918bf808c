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

// The parameters of a piece's neurons: pointers to one value each, or to one per neuron (gain and rest, or all).
template <class R>
struct Neurons {
  const R *decay, *gain, *rest, *threshold, *v_reset;
  PerChannel per_neuron;
  Reset reset;
  bool strict, detach;
  SurrogateShape shape;
  R center;

  Neurons from(int64_t i) const {
    Neurons p = *this;
    const int64_t affine = per_neuron == PerChannel::none ? 0 : i, all = per_neuron == PerChannel::all ? i : 0;
    p.decay += all, p.gain += affine, p.rest += affine, p.threshold += all, p.v_reset += all;
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

template <Reset reset, bool strict, PerChannel per, int emit, class R>
void step(const Neurons<R>& p, const R* x, R* v, R* s, R* m, int64_t n) {
  const Parameter<R, per != PerChannel::none> gain(p.gain), rest(p.rest);
  const Parameter<R, per == PerChannel::all> decay(p.decay), threshold(p.threshold), v_reset(p.v_reset);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const R earlier = reset == Reset::delayed ? lif_fire(strict, threshold[i], v[i]) : R(0);
    const R membrane = lif_membrane(reset, decay[i], gain[i], rest[i], threshold[i], v[i], x[i], earlier);
    const R spike = lif_fire(strict, threshold[i], membrane);
    v[i] = lif_reset(reset, threshold[i], v_reset[i], membrane, spike);
    if (emit & kSpikes) s[i] = spike;
    if (emit & kMembranes) m[i] = membrane;
  }
}

template <Reset reset, bool strict, PerChannel per, class R>
StepRow<R> step_of(int emit) {
  return emit == kSpikes      ? step<reset, strict, per, kSpikes, R>
         : emit == kMembranes ? step<reset, strict, per, kMembranes, R>
                              : step<reset, strict, per, kBoth, R>;
}
template <Reset reset, bool strict, class R>
StepRow<R> step_of(PerChannel per, int emit) {
  return per == PerChannel::none     ? step_of<reset, strict, PerChannel::none, R>(emit)
         : per == PerChannel::affine ? step_of<reset, strict, PerChannel::affine, R>(emit)
                                     : step_of<reset, strict, PerChannel::all, R>(emit);
}
template <bool strict, class R>
StepRow<R> step_of(Reset reset, PerChannel per, int emit) {
  switch (reset) {
    case Reset::hard: return step_of<Reset::hard, strict, R>(per, emit);
    case Reset::soft: return step_of<Reset::soft, strict, R>(per, emit);
    case Reset::none: return step_of<Reset::none, strict, R>(per, emit);
    case Reset::delayed: return step_of<Reset::delayed, strict, R>(per, emit);
  }
  return nullptr;
}

// Of potentials m: the spikes, the surrogate's slope, its smooth stand-in for the spike.
template <class R>
using MembraneRow = void (*)(const Neurons<R>&, const R* m, R* out, int64_t n);

template <bool strict, bool per_neuron, class R>
void fire(const Neurons<R>& p, const R* m, R* s, int64_t n) {
  const Parameter<R, per_neuron> threshold(p.threshold);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) s[i] = lif_fire(strict, threshold[i], m[i]);
}

template <class Surrogate, bool per_neuron, class R>
void slope(const Neurons<R>& p, const R* m, R* out, int64_t n) {
  const Surrogate surrogate(p.shape);
  const Parameter<R, per_neuron> threshold(p.threshold);
  const R center = p.center;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = surrogate.slope(m[i] - (threshold[i] + center));
}

template <class Surrogate, bool per_neuron, class R>
void smooth(const Neurons<R>& p, const R* m, R* s, int64_t n) {
  const Surrogate surrogate(p.shape);
  const Parameter<R, per_neuron> threshold(p.threshold);
  for (int64_t i = 0; i < n; ++i) s[i] = surrogate.smooth(m[i] - (threshold[i] + p.center));
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
    const R spike = spikes == Spikes::given ? s[i] : lif_fire(spikes == Spikes::above, threshold[i], m[i]);
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

template <class R>
struct RowFunctions {
  MembraneRow<R> fire, slope;
  AdjointRow<R> adjoint;
  void (*scale)(const R* gain, const R* dm, R* dx, int64_t n);
  bool needs_spikes;  // the adjoint, or what else asks for them
};

template <bool per_neuron, class R>
RowFunctions<R> row_functions(const Lif& a) {
  RowFunctions<R> f{};
  f.fire = a.strict ? fire<true, per_neuron, R> : fire<false, per_neuron, R>;
  with_surrogate<R>(static_cast<SurrogateId>(a.surrogate), {a.shape, a.scale}, [&](auto surrogate) {
    using S = decltype(surrogate);
    f.slope = slope<S, per_neuron, R>;
    if (a.smooth) f.fire = smooth<S, per_neuron, R>;
  });
  f.needs_spikes = a.smooth || a.dweights || a.wanted & (kThreshold | kVReset);
  const Spikes spikes = f.needs_spikes ? Spikes::given : a.strict ? Spikes::above : Spikes::at;
  f.adjoint = adjoint_of<per_neuron, R>(static_cast<Reset>(a.reset), a.detach_reset, a.dmembrane, spikes);
  f.scale = a.per_channel == PerChannel::none ? scale<false, R> : scale<true, R>;
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

// What a call's blocks share.
template <class R>
struct Plan {
  const Lif& a;
  Channels channels;
  RowIo<R> x_io, out_io;
  RowFunctions<R> rows;
  int64_t block;
  R readout_weight;  // of a rate

  explicit Plan(const Lif& call)
      : a(call), channels{call.channels, call.inner}, x_io(row_io<R>(call.x_dtype)), out_io(row_io<R>(call.out_dtype)),
        rows(call.per_channel == PerChannel::all ? row_functions<true, R>(call) : row_functions<false, R>(call)),
        block(block_size<R>(call.size)), readout_weight(R(1) / static_cast<R>(call.steps)) {}

  StepRow<R> step(int emit) const {
    const Reset reset = static_cast<Reset>(a.reset);
    return a.strict ? step_of<true, R>(reset, a.per_channel, emit) : step_of<false, R>(reset, a.per_channel, emit);
  }
  R weight(int64_t t) const {
    return a.readout == Readout::weights ? static_cast<R>(a.weights[t]) : a.readout == Readout::rate ? readout_weight : R(1);
  }
};

// The parameters of a block, spread over its neurons where they are per channel.
template <class R>
struct BlockParameters {
  alignas(64) R row[kParameters][kBlock<R>];
  R number[kParameters];

  Neurons<R> operator()(const Plan<R>& plan, int64_t begin, int64_t n) {
    const Lif& a = plan.a;
    const R* values[kParameters];
    for (int k = 0; k < kParameters; ++k) {
      const bool affine = k == 1 || k == 2;
      const bool spread = a.per_channel == PerChannel::all || (a.per_channel == PerChannel::affine && affine);
      number[k] = static_cast<R>(a.numbers[k]);
      if (spread) plan.channels.spread(static_cast<const R*>(a.parameters) + k * a.channels, begin, n, row[k]);
      values[k] = spread ? row[k] : number + k;
    }
    return {values[0], values[1], values[2], values[3], values[4], a.per_channel, static_cast<Reset>(a.reset),
            a.strict,  a.detach_reset, {a.shape, a.scale}, static_cast<R>(a.center)};
  }
};

// One time step with smooth spikes, whatever the options: for leaky integrators and numerical differentiation.
template <class R>
void smooth_step(const RowFunctions<R>& rows, const Neurons<R>& p, const R* x, R* v, R* s, R* m, int64_t n) {
  const bool all = p.per_neuron == PerChannel::all, affine = p.per_neuron != PerChannel::none;
  R earlier[kPiece];
  rows.fire(p, v, earlier, n);
  for (int64_t i = 0; i < n; ++i)
    m[i] = lif_membrane(p.reset, p.decay[i * all], p.gain[i * affine], p.rest[i * affine], p.threshold[i * all], v[i],
                        x[i], earlier[i]);
  rows.fire(p, m, s, n);
  for (int64_t i = 0; i < n; ++i) v[i] = lif_reset(p.reset, p.threshold[i * all], p.v_reset[i * all], m[i], s[i]);
}

// ------------------------------------------------------------------------------------------------------- forward

template <class R>
void forward(const Lif& a) {
  const Plan<R> plan(a);
  const StepRow<R> step = plan.step(a.membrane ? kBoth : kSpikes);
  const auto store = a.smooth ? plan.out_io.store : plan.out_io.store_spikes;
  const bool stream = a.readout == Readout::none && a.steps * a.size * plan.out_io.bytes >= kStreamBytes;
  const bool stream_membrane = a.steps * a.size * static_cast<int64_t>(sizeof(R)) >= kStreamBytes;
  parallel_blocks(a.size, plan.block, a.place.threads, [&](int64_t begin, int64_t n) {
    BlockParameters<R> parameters;
    alignas(64) R v[kBlock<R>], sum[kBlock<R>], s[kPiece], m[kPiece], buffer[kPiece];
    const Neurons<R> neurons = parameters(plan, begin, n);
    load_or_zero(v, a.v0, begin, n);
    if (a.readout != Readout::none) memset(sum, 0, n * sizeof(R));
    for (int64_t t = 0; t < a.steps; ++t) {
      if (t > 0 && t % kChunk == 0 && a.saved) store_state(a.saved, (t / kChunk - 1) * a.size + begin, v, n);
      const R weight = a.readout == Readout::weights ? plan.weight(t) : R(1);
      for_pieces(n, [&](int64_t i, int64_t k) {
        const int64_t at = t * a.size + begin + i;
        if (t + kAhead < a.steps) plan.x_io.prefetch(a.x, (t + kAhead) * a.x_stride + begin + i, k);
        const R* x = plan.x_io.load(a.x, t * a.x_stride + begin + i, buffer, k);
        if (a.smooth)
          smooth_step(plan.rows, neurons.from(i), x, v + i, s, m, k);
        else
          step(neurons.from(i), x, v + i, s, m, k);
        if (a.membrane) store_row(static_cast<R*>(a.membrane) + at, m, k, stream_membrane);
        if (a.readout == Readout::none)
          store(a.out, at, s, k, stream);
        else
          for (int64_t j = 0; j < k; ++j) sum[i + j] += weight * s[j];
      });
    }
    if (a.readout == Readout::rate)
      for (int64_t i = 0; i < n; ++i) sum[i] /= static_cast<R>(a.steps);
    if (a.readout != Readout::none) plan.out_io.store(a.out, begin, sum, n, false);
    store_state(a.v, begin, v, n);
    stream_fence(stream || stream_membrane);
  });
}

// ------------------------------------------------------------------------------------------------------ backward

// Sums over time of the parameters' gradients, per neuron; at the end of a block they are gathered by channel.
template <class R>
struct ParameterGradients {
  alignas(64) R row[kParameters][kBlock<R>];

  void clear(int wanted, int64_t n) {
    for (int k = 0; k < kParameters; ++k)
      if (wanted >> k & 1 || ((k == 1 || k == 2) && wanted & (kGain | kRest))) memset(row[k], 0, n * sizeof(R));
  }

  // What goes through the spike: before dv becomes the gradient of the step before.
  void add_spikes(const Lif& a, const Neurons<R>& p, const R* m, const R* s, const R* slope, const R* ds, R weight,
                  const R* dv, const R* later, int64_t at, int64_t n) {
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

  // What goes through the membrane potential; v is that before the step. Gain and rest come together or not at all.
  void add_membranes(const Lif& a, const Neurons<R>& p, const RowFunctions<R>& rows, const R* dm, const R* v, const R* x,
                     const R* center, int64_t at, int64_t n) {
    if (a.wanted & kDecay)
      for (int64_t i = 0; i < n; ++i) row[0][at + i] += dm[i] * v[i];
    if (a.wanted & (kGain | kRest)) {
      R *gain = row[1] + at, *rest = row[2] + at;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        gain[i] += dm[i] * (x[i] - center[i]);
        rest[i] += dm[i];
      }
    }
    if (a.wanted & kThreshold && p.reset == Reset::delayed) {
      R earlier[kPiece];
      rows.fire(p, v, earlier, n);
      for (int64_t i = 0; i < n; ++i) row[3][at + i] -= dm[i] * earlier[i];
    }
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

template <class R>
void backward(const Lif& a) {
  const Plan<R> plan(a);
  const StepRow<R> step = plan.step(kMembranes);
  const Sums sums(a, plan.block);
  const bool constant = a.x_stride == 0;
  const bool delayed = a.reset == static_cast<int>(Reset::delayed);
  const bool keep_v = a.wanted & kDecay || (delayed && a.wanted & kThreshold);
  const bool needs_x = a.wanted & (kGain | kRest);
  const bool unit_gain = a.per_channel == PerChannel::none && a.numbers[1] == 1;
  const int64_t dout_stride = a.readout == Readout::none ? a.size : 0;
  const int64_t chunks = (a.steps + kChunk - 1) / kChunk;
  const bool stream = !constant && a.steps * a.size * plan.x_io.bytes >= kStreamBytes;
  parallel_blocks(a.size, plan.block, a.place.threads, [&](int64_t begin, int64_t n) {
    BlockParameters<R> parameters;
    ParameterGradients<R> gradients;
    alignas(64) R m[kChunk][kBlock<R>], v_before[kChunk][kBlock<R>], v[kBlock<R>], dv[kBlock<R>], later[kBlock<R>],
        dx_sum[kBlock<R>], center[kBlock<R>];
    alignas(64) R s[kPiece], slope[kPiece], dm[kPiece], dx[kPiece], x_buffer[kPiece], buffer[kPiece], zero[kPiece];
    const Neurons<R> neurons = parameters(plan, begin, n);
    memset(zero, 0, sizeof zero);
    gradients.clear(a.wanted, n);
    load_or_zero(dv, a.dv, begin, n);
    memset(later, 0, n * sizeof(R));
    if (constant) memset(dx_sum, 0, n * sizeof(R));
    if (a.wanted) sums.parameters.clear(a.workspace, begin);
    memset(center, 0, n * sizeof(R));
    if (a.center_of_x) plan.channels.spread(static_cast<const R*>(a.center_of_x), begin, n, center);

    const auto recompute = [&](int64_t first, int64_t last) {
      load_or_zero(v, first ? a.saved : a.v0, first ? (first / kChunk - 1) * a.size + begin : begin, n);
      for (int64_t t = first; t < last; ++t)
        for_pieces(n, [&](int64_t i, int64_t k) {
          if (t + kAhead < last) plan.x_io.prefetch(a.x, (t + kAhead) * a.x_stride + begin + i, k);
          const R* x = plan.x_io.load(a.x, t * a.x_stride + begin + i, x_buffer, k);
          if (keep_v) memcpy(v_before[t - first] + i, v + i, k * sizeof(R));
          if (a.smooth)
            smooth_step(plan.rows, neurons.from(i), x, v + i, s, m[t - first] + i, k);
          else
            step(neurons.from(i), x, v + i, s, m[t - first] + i, k);
        });
    };

    const auto step_back = [&](int64_t first, int64_t t, int64_t i, int64_t k) {
      const Neurons<R> p = neurons.from(i);
      const R* membrane = m[t - first] + i;
      const R weight = plan.weight(t);
      const int64_t at = t * a.size + begin + i;
      const R* ds = a.dout ? plan.out_io.load(a.dout, t * dout_stride + begin + i, buffer, k) : zero;
      const R* recorded = a.dmembrane ? static_cast<const R*>(a.dmembrane) + at : nullptr;
      plan.rows.slope(p, membrane, slope, k);
      if (plan.rows.needs_spikes) plan.rows.fire(p, membrane, s, k);
      if (a.dweights) a.workspace[sums.weights_at + begin / plan.block * a.steps + t] += dot(ds, s, k);
      if (a.wanted & (kThreshold | kVReset))
        gradients.add_spikes(a, p, membrane, s, slope, ds, weight, dv + i, later + i, i, k);
      plan.rows.adjoint(p, membrane, s, slope, ds, weight, recorded, later + i, dv + i, dm, k);
      const R* x = needs_x ? plan.x_io.load(a.x, t * a.x_stride + begin + i, x_buffer, k) : zero;
      if (a.dx) {
        if (!unit_gain) plan.rows.scale(p.gain, dm, dx, k);
        const R* result = unit_gain ? dm : dx;
        if (constant)
          for (int64_t j = 0; j < k; ++j) dx_sum[i + j] += result[j];
        else
          plan.x_io.store(a.dx, at, result, k, stream);
      }
      if (a.wanted) gradients.add_membranes(a, p, plan.rows, dm, v_before[t - first] + i, x, center + i, i, k);
      if (delayed && !a.detach_reset) {
        const bool all = p.per_neuron == PerChannel::all;
        for (int64_t j = 0; j < k; ++j) later[i + j] = -p.threshold[j * all] * dm[j];
      }
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
          step_back(first, t, i, k);
        });
    }
    if (delayed && !a.detach_reset) {  // the first step's earlier spike is that at v0
      load_or_zero(v, a.v0, begin, n);
      for_pieces(n, [&](int64_t i, int64_t k) {
        plan.rows.slope(neurons.from(i), v + i, slope, k);
        for (int64_t j = 0; j < k; ++j) {
          dv[i + j] += later[i + j] * slope[j];
          if (a.wanted & kThreshold) gradients.row[3][i + j] -= later[i + j] * slope[j];
        }
      });
    }
    if (constant && a.dx) plan.x_io.store(a.dx, begin, dx_sum, n, false);
    store_state(a.dv0, begin, dv, n);
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
