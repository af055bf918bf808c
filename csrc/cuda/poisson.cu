// The Poisson spike sampler: a thread draws the uniforms of 16 bytes' worth of rates for four time steps at once,
// compares and forgets them; the backward draws them anew. The seed is read on the device, so that a captured graph draws
// new noise at every replay.
#include "../math/philox.h"
#include "../math/surrogate.h"
#include "device.h"
#include "kernels.h"

namespace esvae {
namespace {

constexpr int kLanes = 4;  // time steps that one counter serves

// The random words of V elements.
template <int V>
class Draw {
 public:
  ESVAE_DEVICE Draw(const Poisson& a, int64_t at) : keys_(stream_key(*a.seed, a.noise_stream)) {
    Run run(at, a.elements, a.samples);
#pragma unroll
    for (int j = 0; j < V; ++j, run.next()) {
      const uint64_t id = static_cast<uint64_t>(a.ids[run.number]);
      start_[j].set(static_cast<uint32_t>(run.within), static_cast<uint32_t>(id), id >> 32, keys_);
    }
  }

  // Of the time steps t .. t+kLanes-1.
  template <class R>
  ESVAE_DEVICE void operator()(int64_t t, R (&u)[kLanes][V]) const {
#pragma unroll
    for (int j = 0; j < V; ++j) {
      PhiloxState<uint64_t> s = start_[j].at(static_cast<uint64_t>(t / kLanes), keys_);
      s.round(keys_, 9);
      u[0][j] = uniform<R>(static_cast<uint32_t>(s.c0)), u[1][j] = uniform<R>(static_cast<uint32_t>(s.c1));
      u[2][j] = uniform<R>(static_cast<uint32_t>(s.c2)), u[3][j] = uniform<R>(static_cast<uint32_t>(s.c3));
    }
  }

 private:
  PhiloxKeys keys_;
  PhiloxStart<uint64_t> start_[V];
};

template <class S, int V>
__global__ void __launch_bounds__(kThreads<S>, 1)
    poisson_forward(const __grid_constant__ Poisson a, const __grid_constant__ AnySurrogate<State<S>> surrogate) {
  using R = State<S>;
  const int64_t size = a.samples * a.elements;
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads<S> + threadIdx.x) * V;
  if (at >= size) return;
  const Draw<V> draw(a, at);
  const Vector<S, V> rate = load<S, V>(a.rate, at);
  const R shift = static_cast<R>(a.shift);
#pragma unroll 1
  for (int64_t t = 0; t < a.steps; t += kLanes) {
    R u[kLanes][V];
    draw(t, u);
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      if (t + lane >= a.steps) break;
      R s[V];
#pragma unroll
      for (int j = 0; j < V; ++j) s[j] = u[lane][j] < widen(rate.lane[j]) ? R(1) : R(0);
      if (a.smooth)
        surrogate.visit([&](const auto& chosen) {
#pragma unroll
          for (int j = 0; j < V; ++j) s[j] = chosen.smooth((widen(rate.lane[j]) - u[lane][j]) - shift);
        });
      store(a.spikes_dtype, a.out, (t + lane) * size + at, s);
    }
  }
}

template <class S, int V>
__global__ void __launch_bounds__(kThreads<S>, 1)
    poisson_backward(const __grid_constant__ Poisson a, const __grid_constant__ AnySurrogate<State<S>> surrogate) {
  using R = State<S>;
  const int64_t size = a.samples * a.elements;
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads<S> + threadIdx.x) * V;
  if (at >= size) return;
  const Draw<V> draw(a, at);
  const Vector<S, V> rate = load<S, V>(a.rate, at);
  const R shift = static_cast<R>(a.shift);
  const bool alike = a.spikes_dtype == kDType<S>;
  const bool drawn = surrogate.id != SurrogateId::straight_through;  // its slope is the same everywhere
  R sum[V] = {};
#pragma unroll 1
  for (int64_t t = 0; t < a.steps; t += kLanes) {
    const int count = t + kLanes < a.steps ? kLanes : static_cast<int>(a.steps - t);
    Vector<S, V> rows[kLanes];
    if (alike) load_group(a.dspikes, t * size + at, size, count, rows);
    R u[kLanes][V] = {};
    if (drawn) draw(t, u);
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      if (lane >= count) break;
      R ds[V];
      if (alike)
#pragma unroll
        for (int j = 0; j < V; ++j) ds[j] = widen(rows[lane].lane[j]);
      else
        load_any(a.spikes_dtype, a.dspikes, (t + lane) * size + at, ds);
      surrogate.visit([&](const auto& chosen) {
#pragma unroll
        for (int j = 0; j < V; ++j) sum[j] += ds[j] * chosen.slope((widen(rate.lane[j]) - u[lane][j]) - shift);
      });
    }
  }
  store<S>(a.out, at, sum);
}

// f(zero of the rates' type, number of elements a thread takes, number of blocks).
template <class F>
void with_layout(const Poisson& a, F&& f) {
  const int64_t size = a.samples * a.elements;
  with_element(a.dtype, [&](auto zero) {
    using S = decltype(zero);
    with_vector<S>(size, {a.rate, a.dspikes, a.out}, [&](auto V) {
      f(zero, V, divided_up(size, V * kThreads<S>), AnySurrogate<State<S>>(a.surrogate, {a.shape, a.scale}));
    });
  });
}

}  // namespace

namespace cuda {

void poisson_forward(const Poisson& a) {
  with_layout(a, [&](auto zero, auto V, int64_t blocks, const auto& surrogate) {
    using S = decltype(zero);
    launch("poisson_forward", a.place, esvae::poisson_forward<S, V>, blocks, kThreads<S>, a, surrogate);
  });
}

void poisson_backward(const Poisson& a) {
  with_layout(a, [&](auto zero, auto V, int64_t blocks, const auto& surrogate) {
    using S = decltype(zero);
    launch("poisson_backward", a.place, esvae::poisson_backward<S, V>, blocks, kThreads<S>, a, surrogate);
  });
}

}  // namespace cuda
}  // namespace esvae
