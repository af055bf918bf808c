// The LIF neuron over all time steps: a thread takes a block of neurons through the whole sequence, with their
// potentials in cache. Compiled once per vector width (ESVAE_ISA).
#include "../math/lif.h"
#include "kernels.h"
#include "rows.h"

namespace esvae {
namespace {

constexpr int64_t kChunk = 16;  // time steps between two stored potentials

template <class R>
LifParams<R> params(const LifOptions& o) {
  return {static_cast<R>(o.decay),     static_cast<R>(o.gain),
          static_cast<R>(o.rest),      static_cast<R>(o.threshold),
          static_cast<R>(o.v_reset),   static_cast<R>(o.threshold + o.center),
          o.strict,                    o.detach_reset};
}

template <bool strict>
struct Step {
  explicit Step(double) {}
  template <class R>
  ESVAE_HD R operator()(const LifParams<R>& p, R m) const {
    return lif_fire<strict>(p, m);
  }
};

template <class Surrogate>
struct Smooth {
  Surrogate surrogate;
  explicit Smooth(double shape) : surrogate(shape) {}
  template <class R>
  ESVAE_HD R operator()(const LifParams<R>& p, R m) const {
    return surrogate.smooth(m - p.center);
  }
};

// One time step of a block of n neurons; writes the spikes, or with `keep` the potentials that the backward needs.
template <Reset reset, bool keep, class Fire, class R>
void step(const LifParams<R>& params, double shape, const R* ESVAE_RESTRICT x, R* ESVAE_RESTRICT v, R* ESVAE_RESTRICT out,
          int64_t n) {
  const LifParams<R> p = params;  // a copy, so that no store can change it and the loop vectorises
  const Fire fire(shape);
  for (int64_t i = 0; i < n; ++i) {
    const R m = lif_membrane(p, v[i], x[i]);
    const R s = fire(p, m);
    v[i] = lif_reset<reset>(p, m, s);
    out[i] = keep ? m : s;
  }
}

// One time step of at most kPiece neurons backwards: dv becomes the gradient of the potential before this step.
template <Reset reset, class Fire, class Surrogate, class R>
void step_back(const LifParams<R>& params, double shape, const R* ESVAE_RESTRICT m, const R* ESVAE_RESTRICT ds, R weight,
               R* ESVAE_RESTRICT dv, R* ESVAE_RESTRICT dx, int64_t n) {
  const LifParams<R> p = params;
  const Fire fire(shape);
  const Surrogate surrogate(shape);
  R slope[kPiece];  // in a loop of its own, which compilers vectorise for every surrogate
  for (int64_t i = 0; i < n; ++i) slope[i] = surrogate.slope(m[i] - p.center);
  for (int64_t i = 0; i < n; ++i) {
    const R dm = lif_adjoint<reset>(p, m[i], fire(p, m[i]), slope[i], ds[i] * weight, dv[i]);
    dx[i] = p.gain * dm;
    dv[i] = p.decay * dm;
  }
}

// The row functions of one choice of options. Choosing them by address, once a call, keeps the module small: element
// types, resets, spike functions and surrogates multiply only inside a row.
template <class R>
struct Neuron {
  using StepRow = void (*)(const LifParams<R>&, double, const R*, R*, R*, int64_t);
  using BackRow = void (*)(const LifParams<R>&, double, const R*, const R*, R, R*, R*, int64_t);
  StepRow step, keep;
  BackRow back;
};

template <Reset reset, class Fire, class Surrogate, class R>
Neuron<R> neuron() {
  return {step<reset, false, Fire, R>, step<reset, true, Fire, R>, step_back<reset, Fire, Surrogate, R>};
}

template <Reset reset, class R>
Neuron<R> choose(const LifOptions& o) {
  Neuron<R> chosen{};
  with_surrogate<R>(static_cast<SurrogateId>(o.surrogate), o.shape, [&](auto surrogate) {
    using S = decltype(surrogate);
    chosen = o.smooth   ? neuron<reset, Smooth<S>, S, R>()
             : o.strict ? neuron<reset, Step<true>, S, R>()
                        : neuron<reset, Step<false>, S, R>();
  });
  return chosen;
}

template <class R>
Neuron<R> choose(const LifOptions& o) {
  return o.reset == static_cast<int>(Reset::hard) ? choose<Reset::hard, R>(o) : choose<Reset::soft, R>(o);
}

template <class R>
void load_or_zero(R* dst, const void* src, int64_t offset, int64_t n) {
  if (src)
    memcpy(dst, static_cast<const R*>(src) + offset, n * sizeof(R));
  else
    memset(dst, 0, n * sizeof(R));
}

template <class R>
void forward(const LifForward& a, const RowIo<R>& io) {
  const LifParams<R> p = params<R>(a.options);
  const Neuron<R> neuron = choose<R>(a.options);
  const Readout readout = static_cast<Readout>(a.options.readout);
  const int64_t block = block_size<R>(a.size, a.threads);
  const bool stream = readout == Readout::none && a.steps * a.size * io.bytes >= kStreamBytes;
#pragma omp parallel for schedule(static) num_threads(a.threads)
  for (int64_t begin = 0; begin < a.size; begin += block) {
    const int64_t n = a.size - begin < block ? a.size - begin : block;
    alignas(64) R v[kBlock<R>], s[kBlock<R>], buffer[kBlock<R>], sum[kBlock<R>];
    load_or_zero(v, a.v0, begin, n);
    memset(sum, 0, sizeof sum);
    for (int64_t t = 0; t < a.steps; ++t) {
      if (a.saved && t > 0 && t % kChunk == 0)
        memcpy(static_cast<R*>(a.saved) + (t / kChunk - 1) * a.size + begin, v, n * sizeof(R));
      const R* x = io.load(a.x, t * a.x_stride + begin, buffer, n);
      for_pieces(n, [&](int64_t i, int64_t k) {
        if (t + kAhead < a.steps) io.prefetch(a.x, (t + kAhead) * a.x_stride + begin + i, k);
        neuron.step(p, a.options.shape, x + i, v + i, s + i, k);
      });
      if (readout == Readout::none) {
        io.store(a.out, t * a.size + begin, s, n, stream);
      } else {
        const R w = readout == Readout::weights ? static_cast<R>(a.weights[t]) : R(1);
        for (int64_t i = 0; i < n; ++i) sum[i] += w * s[i];
      }
    }
    if (readout == Readout::rate)
      for (int64_t i = 0; i < n; ++i) sum[i] /= static_cast<R>(a.steps);
    if (readout != Readout::none) io.store(a.out, begin, sum, n, false);
    memcpy(static_cast<R*>(a.v) + begin, v, n * sizeof(R));
    stream_fence(stream);
  }
}

template <class R>
void backward(const LifBackward& a, const RowIo<R>& io) {
  const LifParams<R> p = params<R>(a.options);
  const Neuron<R> neuron = choose<R>(a.options);
  const double shape = a.options.shape;
  const Readout readout = static_cast<Readout>(a.options.readout);
  const int64_t dout_stride = readout == Readout::none ? a.size : 0;
  const bool constant = a.x_stride == 0;
  const int64_t block = block_size<R>(a.size, a.threads);
  const int64_t chunks = (a.steps + kChunk - 1) / kChunk;
  const bool stream = !constant && a.steps * a.size * io.bytes >= kStreamBytes;
#pragma omp parallel for schedule(static) num_threads(a.threads)
  for (int64_t begin = 0; begin < a.size; begin += block) {
    const int64_t n = a.size - begin < block ? a.size - begin : block;
    alignas(64) R m[kChunk][kBlock<R>], v[kBlock<R>], dv[kBlock<R>], dx[kBlock<R>], buffer[kBlock<R>], sum[kBlock<R>];
    load_or_zero(dv, a.dv, begin, n);
    memset(sum, 0, sizeof sum);
    for (int64_t c = chunks - 1; c >= 0; --c) {
      const int64_t first = c * kChunk;
      const int64_t last = first + kChunk < a.steps ? first + kChunk : a.steps;
      load_or_zero(v, c == 0 ? a.v0 : a.saved, c == 0 ? begin : (c - 1) * a.size + begin, n);
      for (int64_t t = first; t < last; ++t) {
        const R* x = io.load(a.x, t * a.x_stride + begin, buffer, n);
        for_pieces(n, [&](int64_t i, int64_t k) {
          if (t + kAhead < last) io.prefetch(a.x, (t + kAhead) * a.x_stride + begin + i, k);
          neuron.keep(p, shape, x + i, v + i, m[t - first] + i, k);
        });
      }
      for (int64_t t = last - 1; t >= first; --t) {
        const R* ds = io.load(a.dout, t * dout_stride + begin, buffer, n);
        const R weight = readout == Readout::weights ? static_cast<R>(a.weights[t])
                         : readout == Readout::rate  ? R(1) / static_cast<R>(a.steps)
                                                     : R(1);
        for_pieces(n, [&](int64_t i, int64_t k) {
          if (t - kAhead >= first) io.prefetch(a.dout, (t - kAhead) * dout_stride + begin + i, k);
          neuron.back(p, shape, m[t - first] + i, ds + i, weight, dv + i, dx + i, k);
        });
        if (constant)
          for (int64_t i = 0; i < n; ++i) sum[i] += dx[i];
        else
          io.store(a.dx, t * a.size + begin, dx, n, stream);
      }
    }
    if (constant) io.store(a.dx, begin, sum, n, false);
    if (a.dv0) memcpy(static_cast<R*>(a.dv0) + begin, dv, n * sizeof(R));
    stream_fence(stream);
  }
}

}  // namespace

namespace ESVAE_ISA {

void lif_forward(const LifForward& a) {
  with_row_io(a.dtype, [&](auto io) { forward(a, io); });
}

void lif_backward(const LifBackward& a) {
  with_row_io(a.dtype, [&](auto io) { backward(a, io); });
}

}  // namespace ESVAE_ISA
}  // namespace esvae
