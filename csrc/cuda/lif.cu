// The LIF neuron over all time steps: a thread takes 16 bytes' worth of neurons through the whole sequence, with their
// potentials in registers; on the way back those of 16 steps are computed again into shared memory. One kernel for each
// direction and type of x: all other options are branches that every thread takes alike. Only those that few calls use
// and that need more registers or shared memory (`extended`) have kernels of their own, with one neuron a thread.
#include "../math/lif.h"
#include "../math/surrogate.h"
#include "device.h"
#include "kernels.h"

namespace esvae {
namespace {

constexpr int kGroup = 4, kPair = 2;  // time steps whose loads are under way at once, forward and backward

// Whether a rate is over more steps than a count in the state's type holds.
ESVAE_HD bool counts_on(const Lif& a) { return a.readout == Readout::rate && a.steps > kCounted; }

// Whether a call needs a kernel for rare options.
bool is_extended(const Lif& a) {
  return a.synaptic || a.several || lif_lifts(a.v_min) || a.reset == static_cast<int>(Reset::at_once) || counts_on(a);
}

// The V neurons of a thread.
template <class R, int V, bool extended>
struct Neurons {
  const Lif& a;
  const AnySurrogate<R>& surrogate;
  const Reset reset;
  const bool looks_back, synaptic, several, lifts;
  const R shift;
  R decay[V], gain[V], bias[V], threshold[V], v_reset[V], synapse[V], center_of_x[V];

  ESVAE_DEVICE Neurons(const Lif& call, const AnySurrogate<R>& s, int64_t at)
      : a(call), surrogate(s), reset(static_cast<Reset>(call.reset)),
        looks_back(extended ? lif_looks_back(reset) : reset == Reset::delayed), synaptic(extended && call.synaptic),
        several(extended && call.several), lifts(extended && lif_lifts(call.v_min)),
        shift(static_cast<R>(call.shift)) {
    R(*const rows[kParameters])[V] = {&decay, &gain, &bias, &threshold, &v_reset, &synapse};
#pragma unroll
    for (int k = 0; k < kParameters; ++k)
#pragma unroll
      for (int j = 0; j < V; ++j) (*rows[k])[j] = static_cast<R>(a.numbers[k]);
#pragma unroll
    for (int j = 0; j < V; ++j) center_of_x[j] = 0;
    if (a.per_channel == PerChannel::none) return;
    const R* const values = static_cast<const R*>(a.parameters);
    const R* const centers = static_cast<const R*>(a.center_of_x);
    Run run(at, a.inner, a.channels);
#pragma unroll
    for (int j = 0; j < V; ++j, run.next()) {
#pragma unroll
      for (int k = 0; k < kParameters; ++k)
        if (a.per_channel == PerChannel::all || k == 1 || k == 2) (*rows[k])[j] = values[k * a.channels + run.number];
      if (centers) center_of_x[j] = centers[run.number];
    }
  }

  // The spikes at potentials m, or their smooth stand-ins: those lane by lane, in a loop that is compiled once, for they
  // are long and rarely wanted.
  ESVAE_DEVICE void fire(const R (&m)[V], R (&s)[V]) const {
#pragma unroll
    for (int j = 0; j < V; ++j) s[j] = lif_fire(lif_fire_of(a.strict, several), threshold[j], m[j]);
    if (!a.smooth) return;
#pragma unroll 1
    for (int lane = 0; lane < V; ++lane) {
      R value = 0;
#pragma unroll
      for (int j = 0; j < V; ++j)
        if (j == lane) value = m[j] - (threshold[j] + shift);
      surrogate.visit([&](const auto& chosen) { value = chosen.smooth(value); });
#pragma unroll
      for (int j = 0; j < V; ++j)
        if (j == lane) s[j] = value;
    }
  }

  ESVAE_DEVICE void slope(const R (&m)[V], R (&out)[V]) const {
    surrogate.visit([&](const auto& chosen) {
#pragma unroll
      for (int j = 0; j < V; ++j) out[j] = chosen.slope(m[j] - (threshold[j] + shift));
    });
  }

  // v_t; of those that were lifted to v_min it is the same to ask again.
  ESVAE_DEVICE bool below(R v) const { return lifts && lif_below(static_cast<R>(a.v_min), v); }

  // Subtraction at once, which alone looks at the earlier spikes here, is `extended`.
  ESVAE_DEVICE void after_reset(const R (&m)[V], const R (&s)[V], const R (&earlier)[V], R (&v)[V]) const {
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const R in_reset = lif_spike_in_reset(reset, several, s[j]);
      v[j] = lif_reset(reset, threshold[j], v_reset[j], m[j], in_reset, extended ? earlier[j] : R(0));
      if (below(v[j])) v[j] = static_cast<R>(a.v_min);
    }
  }

  // One time step: v and the synaptic current i become the next ones, x what enters the membrane.
  ESVAE_DEVICE void step(R (&x)[V], R (&v)[V], R (&i)[V], R (&m)[V], R (&s)[V]) const {
    R earlier[V] = {};
    if (looks_back) fire(v, earlier);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      if (synaptic) x[j] = lif_current(i[j], x[j]), i[j] = synapse[j] * x[j];
      m[j] = lif_membrane(reset, decay[j], gain[j], bias[j], threshold[j], v[j], x[j], earlier[j]);
    }
    fire(m, s);
    after_reset(m, s, earlier, v);
  }

  // Where the potentials, and behind them the synaptic currents, of the chunk that starts with step `first` are.
  ESVAE_DEVICE int64_t saved_at(int64_t first, int64_t at) const { return (first / kChunk - 1) * a.size + at; }
  ESVAE_DEVICE int64_t saved_current_at(int64_t first, int64_t at) const {
    return (a.steps - 1) / kChunk * a.size + saved_at(first, at);
  }
};

// ------------------------------------------------------------------------------------------------------------ forward

// A count in the state's type starts anew: it is added to one in fp64.
template <class R, int V>
ESVAE_DEVICE void count_on(R (&sum)[V], double (&counted)[V]) {
#pragma unroll
  for (int j = 0; j < V; ++j) counted[j] += static_cast<double>(sum[j]), sum[j] = 0;
}

// The mean over time from the count.
template <bool extended, class R, int V>
ESVAE_DEVICE void divide(const Lif& a, R (&sum)[V], double (&counted)[V]) {
  if (extended && counts_on(a)) {
    count_on(sum, counted);
#pragma unroll
    for (int j = 0; j < V; ++j) sum[j] = static_cast<R>(counted[j] / static_cast<double>(a.steps));
  } else {
#pragma unroll
    for (int j = 0; j < V; ++j) sum[j] /= static_cast<R>(a.steps);
  }
}

template <class X, int V, bool extended>
__global__ void __launch_bounds__(kThreads<X>, 1)
    lif_forward(const __grid_constant__ Lif a, const __grid_constant__ AnySurrogate<State<X>> surrogate) {
  using R = State<X>;
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads<X> + threadIdx.x) * V;
  if (at >= a.size) return;
  const Neurons<R, V, extended> neurons(a, surrogate, at);
  R v[V], i[V], sum[V] = {};
  double counted[V] = {};  // what `sum` held every kCounted steps, where the rate needs it
  load_state(a.v0, at, v);
  if (neurons.synaptic) load_state(a.i0, at, i);
  for (int64_t first = 0; first < a.steps; first += kGroup) {
    static_assert(kChunk % kGroup == 0, "potentials are stored between groups");
    if (first > 0 && first % kChunk == 0) {
      store_state(a.saved, neurons.saved_at(first, at), v);
      if (neurons.synaptic) store_state(a.saved, neurons.saved_current_at(first, at), i);
      if constexpr (extended)
        if (first % kCounted == 0 && counts_on(a)) count_on(sum, counted);
    }
    const int count = first + kGroup < a.steps ? kGroup : static_cast<int>(a.steps - first);
    Vector<X, V> group[kGroup];
    load_group(a.x, first * a.x_stride + at, a.x_stride, count, group);
#pragma unroll 1
    for (int k = 0; k < count; ++k) {
      R x[V], m[V], s[V];
      pick(group, k, x);
      neurons.step(x, v, i, m, s);
      store_state(a.membrane, (first + k) * a.size + at, m);
      if (a.readout == Readout::none) {
        store(a.out_dtype, a.out, (first + k) * a.size + at, s);
      } else {
        const R weight = a.readout == Readout::weights ? static_cast<R>(a.weights[first + k]) : R(1);
#pragma unroll
        for (int j = 0; j < V; ++j) sum[j] += weight * s[j];
      }
    }
  }
  if (a.readout == Readout::rate) divide<extended>(a, sum, counted);
  if (a.readout != Readout::none) store(a.out_dtype, a.out, at, sum);
  store_state(a.v, at, v);
  if (neurons.synaptic) store_state(a.i, at, i);
}

// ----------------------------------------------------------------------------------------------------------- backward

// The membrane potentials (or what else) of a chunk for all threads of a block, in pieces of at most 16 bytes so that
// the threads of a warp access different banks.
template <class R, int V, int threads>
struct Chunk {
  static constexpr int piece = V * sizeof(R) <= 16 ? V : 16 / sizeof(R);
  Vector<R, piece> at[kChunk][V / piece][threads];

  ESVAE_DEVICE void put(int k, const R (&m)[V]) {
#pragma unroll
    for (int p = 0; p < V / piece; ++p) {
      Vector<R, piece> to;
#pragma unroll
      for (int j = 0; j < piece; ++j) to.lane[j] = m[p * piece + j];
      at[k][p][threadIdx.x] = to;
    }
  }
  ESVAE_DEVICE void get(int k, R (&m)[V]) const {
#pragma unroll
    for (int p = 0; p < V / piece; ++p) {
      const Vector<R, piece> from = at[k][p][threadIdx.x];
#pragma unroll
      for (int j = 0; j < piece; ++j) m[p * piece + j] = from.lane[j];
    }
  }
  // A number of this thread's own in the place of potentials that are no longer needed.
  ESVAE_DEVICE R& own(int k, int thread) { return at[k][0][thread].lane[0]; }
};

int sums_wanted(int bits) {
  int n = 0;
  for (; bits; bits &= bits - 1) ++n;
  return n;
}

// What a thread carries back through time.
template <class X, int V, bool extended>
struct Adjoint {
  using R = State<X>;
  static constexpr int threads = kThreads<X>;
  using Rows = Chunk<R, V, threads>;
  enum Kept : int { membranes, potentials, currents, kKept = extended ? 3 : 1 };  // m_t; with `extended` v_{t-1} and c_t

  const Lif& a;
  const Neurons<R, V, extended>& n;
  Rows (&rows)[kKept];
  const int64_t at;
  const bool through_earlier, affine, needs_v;
  R dv[V], di[V], later[V] = {};  // dL/dv_t, dL/di_t; dL/d(earlier spike) of the step after it
  R v_after[V], dx_sum[V] = {};   // v_t; where x is constant
  R sums[kParameters][V] = {};

  ESVAE_DEVICE Adjoint(const Neurons<R, V, extended>& neurons, Rows (&shared)[kKept], int64_t place)
      : a(neurons.a), n(neurons), rows(shared), at(place),
        through_earlier(n.reset == Reset::delayed && !a.detach_reset), affine(a.wanted & (kGain | kRest)),
        needs_v(a.wanted & kDecay || (n.looks_back && a.wanted & kThreshold)) {
    load_state(a.dv, at, dv);
    if (n.synaptic) load_state(a.di, at, di);
  }

  // The potential before a chunk.
  ESVAE_DEVICE void load_start(int64_t first, R (&v)[V]) const {
    load_state(first ? a.saved : a.v0, first ? n.saved_at(first, at) : at, v);
  }

  ESVAE_DEVICE void recompute(int64_t first, int count) {
    R v[V], i[V];
    load_start(first, v);
    if (n.synaptic) load_state(first ? a.saved : a.i0, first ? n.saved_current_at(first, at) : at, i);
    for (int from = 0; from < count; from += kGroup) {
      Vector<X, V> group[kGroup];
      load_group(a.x, (first + from) * a.x_stride + at, a.x_stride, count - from, group);
#pragma unroll 1
      for (int k = 0; k < kGroup && from + k < count; ++k) {
        R x[V], m[V], s[V];
        pick(group, k, x);
        if constexpr (extended) rows[potentials].put(from + k, v);
        n.step(x, v, i, m, s);
        rows[membranes].put(from + k, m);
        if constexpr (extended) rows[currents].put(from + k, x);
      }
    }
    if constexpr (extended)
#pragma unroll
      for (int j = 0; j < V; ++j) v_after[j] = v[j];
  }

  ESVAE_DEVICE void back(int64_t first, int count) {
    const int64_t stride = a.readout == Readout::none ? a.size : 0;
    const bool alike = a.dout && a.out_dtype == kDType<X>;
    for (int from = (count - 1) / kPair * kPair; from >= 0; from -= kPair) {
      Vector<X, V> ds_pair[kPair] = {}, x_pair[kPair] = {};
      if (alike) load_group(a.dout, (first + from) * stride + at, stride, count - from, ds_pair);
      if (affine && !extended) load_group(a.x, (first + from) * a.x_stride + at, a.x_stride, count - from, x_pair);
#pragma unroll 1
      for (int k = (count - from < kPair ? count - from : kPair) - 1; k >= 0; --k) {
        R ds[V], x[V];
        pick(ds_pair, k, ds);
        pick(x_pair, k, x);
        if (a.dout && !alike) load_any(a.out_dtype, a.dout, (first + from + k) * stride + at, ds);
        if constexpr (extended) rows[currents].get(from + k, x);
        step(first, from + k, ds, x);
      }
    }
  }

  // x: what enters the membrane.
  ESVAE_DEVICE void step(int64_t first, int k, const R (&ds)[V], const R (&x)[V]) {
    if constexpr (extended) lift_back();
    const int64_t t = first + k;
    const R weight = a.readout == Readout::weights ? static_cast<R>(a.weights[t])
                     : a.readout == Readout::rate  ? R(1) / static_cast<R>(a.steps)
                                                   : R(1);
    R m[V], s[V], slope[V], dm[V], through[V], recorded[V], dx[V], fired = 0;
    rows[membranes].get(k, m);
    n.fire(m, s);
    n.slope(m, slope);
    load_state(a.dmembrane, t * a.size + at, recorded);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const R in_all = lif_spike_adjoint(n.reset, a.detach_reset, n.threshold[j], n.v_reset[j], m[j], ds[j] * weight,
                                         dv[j], later[j]);
      fired += ds[j] * s[j];
      const R in_reset = lif_spike_in_reset(n.reset, n.several, s[j]);
      if (a.wanted & kThreshold) sums[3][j] -= lif_threshold_adjoint(n.reset, in_reset, in_all, slope[j], dv[j]);
      if (a.wanted & kVReset && n.reset == Reset::hard) sums[4][j] += dv[j] * in_reset;
      dm[j] = lif_membrane_adjoint(n.reset, in_reset, in_all, slope[j], dv[j]) + recorded[j];
      through[j] = lif_earlier_adjoint(extended ? n.reset : Reset::delayed, dm[j], dv[j]);
      if (through_earlier) later[j] = -n.threshold[j] * through[j];
      dv[j] = n.decay[j] * dm[j];
      dx[j] = n.gain[j] * dm[j];
      if (affine) sums[1][j] += dm[j] * (x[j] - n.center_of_x[j]), sums[2][j] += dm[j];
      if (n.synaptic) {
        sums[5][j] += di[j] * x[j];
        di[j] = dx[j] = lif_current_adjoint(n.gain[j], n.synapse[j], dm[j], di[j]);
      }
    }
    if constexpr (extended) rows[potentials].get(k, v_after);
    if (needs_v) add_before(first, k, dm, through);
    if (a.dweights) rows[membranes].own(k, threadIdx.x) = fired;
    if (!a.dx) return;
    if (a.x_stride)
      store<X>(a.dx, t * a.size + at, dx);
    else
#pragma unroll
      for (int j = 0; j < V; ++j) dx_sum[j] += dx[j];
  }

  // Adds to the sums that the potential before step k enters.
  ESVAE_DEVICE void add_before(int64_t first, int k, const R (&dm)[V], const R (&through)[V]) {
    R v[V], s[V];
    if constexpr (extended) {
      rows[potentials].get(k, v);
    } else if (k > 0) {
      R m[V];
      rows[membranes].get(k - 1, m);
      n.fire(m, s);
      n.after_reset(m, s, s, v);
    } else {
      load_start(first, v);
    }
    if (n.looks_back) n.fire(v, s);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      sums[0][j] += dm[j] * v[j];
      if (n.looks_back) sums[3][j] -= through[j] * s[j];
    }
  }

  // Through the spike at v_t, that step t + 1 subtracts; `slope` there (of a slope taken in here nvcc spills).
  ESVAE_DEVICE void earlier_spike_back(const R (&slope)[V]) {
#pragma unroll
    for (int j = 0; j < V; ++j) {
      dv[j] += later[j] * slope[j];
      sums[3][j] -= later[j] * slope[j];
    }
  }

  // Nothing flows back to potentials that were lifted.
  ESVAE_DEVICE void lift_back() {
    if (!n.lifts) return;
    R slope[V];
    if (through_earlier) n.slope(v_after, slope), earlier_spike_back(slope);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      later[j] = 0;
      if (n.below(v_after[j])) dv[j] = 0;
    }
  }

  // The end, before the first step.
  ESVAE_DEVICE void arrive() {
    if (through_earlier) {  // the first step's earlier spike is that at v0
      R v[V];
      load_start(0, v);
      R slope[V];
      n.slope(v, slope);
      earlier_spike_back(slope);
    }
    if (!a.x_stride && a.dx) store<X>(a.dx, at, dx_sum);
    store_state(a.dv0, at, dv);
    if (n.synaptic) store_state(a.di0, at, di);
  }
};

template <class X, int V, bool extended>
__global__ void __launch_bounds__(kThreads<X>, 1)
    lif_backward(const __grid_constant__ Lif a, const __grid_constant__ AnySurrogate<State<X>> surrogate,
                 const __grid_constant__ Blocks blocks, double* weight_sums) {
  using R = State<X>;
  constexpr int threads = kThreads<X>;
  using Back = Adjoint<X, V, extended>;
  __shared__ union {
    typename Back::Rows rows[Back::kKept];
    double sums[kParameters * V][threads];
  } shared;
  const int64_t vector = blocks.vector(static_cast<int64_t>(blockIdx.x) % blocks.parts * threads + threadIdx.x);
  const bool here = vector >= 0;
  const int64_t at = here ? vector * V : 0;
  const Neurons<R, V, extended> neurons(a, surrogate, at);
  Back adjoint(neurons, shared.rows, at);
  for (int64_t first = (a.steps - 1) / kChunk * kChunk; first >= 0; first -= kChunk) {
    const int count = first + kChunk < a.steps ? kChunk : static_cast<int>(a.steps - first);
    if (here) {
      adjoint.recompute(first, count);
      adjoint.back(first, count);
    }
    if (!a.dweights) continue;
    if (!here)
      for (int k = 0; k < count; ++k) shared.rows[Back::membranes].own(k, threadIdx.x) = 0;
    __syncthreads();
    const int k = threadIdx.x;  // a thread per time step, each starting elsewhere, for the sake of the banks
    if (k < count) {
      double sum = 0;
      for (int i = 0; i < threads; ++i) sum += static_cast<double>(shared.rows[Back::membranes].own(k, (i + k) % threads));
      weight_sums[blockIdx.x * a.steps + first + k] = sum;
    }
    __syncthreads();
  }
  if (here) adjoint.arrive();
  if (!a.wanted) return;
  __syncthreads();  // others may still read their potentials
  int number = 0;
#pragma unroll
  for (int k = 0; k < kParameters; ++k) {
    if (!(a.wanted >> k & 1)) continue;
    double all = 0;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const double own = here ? static_cast<double>(adjoint.sums[k][j]) : 0;
      all += own;
      if (blocks.kept > 1) shared.sums[number++][threadIdx.x] = own;
    }
    if (blocks.kept == 1) shared.sums[number++][threadIdx.x] = all;
  }
  add_up(shared.sums, number, blocks, a.workspace);
}

struct StoreParameters {
  double* to;  // (6, channels)
  int64_t channels;
  int wanted;

  ESVAE_DEVICE void operator()(int64_t channel, const double (*sums)[kFinishThreads]) const {
    for (int k = 0, sum = 0; k < kParameters; ++k)
      if (wanted >> k & 1) to[k * channels + channel] = sums[sum++][0];
  }
};

struct StoreWeight {
  double* to;
  ESVAE_DEVICE void operator()(int64_t t, const double (*sums)[kFinishThreads]) const { to[t] = sums[0][0]; }
};

// ------------------------------------------------------------------------------------------------------ on the host

// f(number of elements a thread takes, whether the kernel is an extended one).
template <class X, class F>
void with_kernel(const Lif& a, int64_t run, std::initializer_list<const void*> tensors, F&& f) {
  if (is_extended(a)) return f(std::integral_constant<int, 1>{}, std::true_type{});
  with_vector<X>(run, tensors, [&](auto V) { f(V, std::false_type{}); });
}

// How the backward is laid out; f(zero of X, what `with_kernel` gives, blocks). The workspace depends on it. Any sum is
// the same whichever others are wanted.
template <class F>
void with_layout(const Lif& a, F&& f) {
  with_element(a.x_dtype, [&](auto zero) {
    using X = decltype(zero);
    const bool sums = a.wanted || a.dweights;
    const std::initializer_list<const void*> tensors = {a.x, a.v0, a.saved, a.dout, a.dmembrane, a.dv, a.dx, a.dv0};
    with_kernel<X>(a, sums ? run_of(a.channels, a.inner) : a.size, tensors, [&](auto V, auto extended) {
      f(zero, V, extended, sums ? Blocks::of(a.size, a.channels, a.inner, V, kThreads<X>)
                      : Blocks::flat(a.size, V, kThreads<X>));
    });
  });
}

}  // namespace

namespace cuda {

void lif_forward(const Lif& a) {
  with_element(a.x_dtype, [&](auto zero) {
    using X = decltype(zero);
    const AnySurrogate<State<X>> surrogate(a.surrogate, {a.shape, a.scale});
    with_kernel<X>(a, a.size, {a.x, a.v0, a.out, a.membrane, a.v, a.saved}, [&](auto V, auto extended) {
      launch("lif_forward", a.place, esvae::lif_forward<X, V, extended>, divided_up(a.size, V * kThreads<X>), kThreads<X>, a,
             surrogate);
    });
  });
}

void lif_backward(const Lif& a) {
  if (a.size == 0) return;
  with_layout(a, [&](auto zero, auto V, auto extended, const Blocks& blocks) {
    using X = decltype(zero);
    const int number = sums_wanted(a.wanted);
    double* const weight_sums = a.workspace + blocks.sums(number);
    const AnySurrogate<State<X>> surrogate(a.surrogate, {a.shape, a.scale});
    launch("lif_backward", a.place, esvae::lif_backward<X, V, extended>, blocks.count(), kThreads<X>, a, surrogate, blocks,
           weight_sums);
    if (a.wanted)
      launch("lif_backward", a.place, finish<kParameters, StoreParameters>, a.channels, kFinishThreads,
             static_cast<const double*>(a.workspace), blocks.parts, number, blocks.kept,
             StoreParameters{a.dparameters, a.channels, a.wanted});
    if (a.dweights)
      launch("lif_backward", a.place, finish<1, StoreWeight>, a.steps, kFinishThreads,
             static_cast<const double*>(weight_sums), blocks.count(), 1, static_cast<int>(a.steps),
             StoreWeight{a.dweights});
  });
}

int64_t lif_workspace(const Lif& a) {
  int64_t result = 0;
  if (a.size > 0)
    with_layout(a, [&](auto, auto, auto, const Blocks& blocks) {
      result = blocks.sums(sums_wanted(a.wanted)) + (a.dweights ? blocks.count() * a.steps : 0);
    });
  return result;
}

}  // namespace cuda
}  // namespace esvae
