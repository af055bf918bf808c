// The Poisson spike sampler: the uniforms are drawn in L1, compared and forgotten; the backward draws them again.
// Compiled once per vector width (ESVAE_ISA).
#include <type_traits>

#include "../math/philox.h"
#include "../math/surrogate.h"
#include "kernels.h"
#include "rows.h"

namespace esvae {
namespace {

constexpr int64_t kBlock = 1024;
constexpr int64_t kLanes = 4;  // time steps that one counter serves

// The counters of a block of elements: position within the sample, and the sample's id.
struct Counters {
  uint32_t element[kBlock], id_low[kBlock], id_high[kBlock];

  void fill(const Poisson& a, int64_t begin, int64_t n) {
    int64_t sample = begin / a.elements, element = begin % a.elements;
    for (int64_t i = 0; i < n;) {
      const int64_t left = a.elements - element < n - i ? a.elements - element : n - i;
      const uint64_t id = static_cast<uint64_t>(a.ids[sample]);
      for (int64_t j = 0; j < left; ++j) {
        this->element[i + j] = static_cast<uint32_t>(element + j);
        id_low[i + j] = static_cast<uint32_t>(id);
        id_high[i + j] = static_cast<uint32_t>(id >> 32);
      }
      i += left;
      ++sample;
      element = 0;
    }
  }
};

// The uniforms of kLanes time steps: u[lane * kBlock + i].
template <class R>
void draw(const Counters& c, uint32_t group, uint64_t seed, R* ESVAE_RESTRICT u, int64_t n) {
  const uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int64_t i = 0; i < n; ++i) {
    const PhiloxWords w = philox(c.element[i], group, c.id_low[i], c.id_high[i], k0, k1);
    u[i] = uniform<R>(w.word[0]);
    u[kBlock + i] = uniform<R>(w.word[1]);
    u[2 * kBlock + i] = uniform<R>(w.word[2]);
    u[3 * kBlock + i] = uniform<R>(w.word[3]);
  }
}

struct Below {
  explicit Below(const Poisson&) {}
  template <class R>
  ESVAE_HD R operator()(R r, R u) const {
    return u < r ? R(1) : R(0);
  }
};

template <class Surrogate, class R>
struct SmoothBelow {
  Surrogate surrogate;
  R center;
  explicit SmoothBelow(const Poisson& a) : surrogate(a.shape), center(static_cast<R>(a.center)) {}
  ESVAE_HD R operator()(R r, R u) const { return surrogate.smooth((r - u) - center); }
};

// u becomes the spikes.
template <class Fire, class R>
void fire_row(const Poisson& a, const R* ESVAE_RESTRICT r, R* ESVAE_RESTRICT u, int64_t n) {
  const Fire fire(a);
  for (int64_t i = 0; i < n; ++i) u[i] = fire(r[i], u[i]);
}

template <class Surrogate, class R>
void slope_row(const Poisson& a, const R* ESVAE_RESTRICT r, const R* ESVAE_RESTRICT u, const R* ESVAE_RESTRICT ds,
               R* ESVAE_RESTRICT sum, int64_t n) {
  const Surrogate surrogate(a.shape);
  const R center = static_cast<R>(a.center);
  for (int64_t i = 0; i < n; ++i) sum[i] += ds[i] * surrogate.slope((r[i] - u[i]) - center);
}

template <class R>
struct Sampler {
  void (*fire)(const Poisson&, const R*, R*, int64_t) = nullptr;
  void (*slope)(const Poisson&, const R*, const R*, const R*, R*, int64_t) = nullptr;
  bool slope_needs_uniforms = true;
};

template <class R>
Sampler<R> choose(const Poisson& a) {
  Sampler<R> chosen;
  with_surrogate<R>(static_cast<SurrogateId>(a.surrogate), a.shape, [&](auto surrogate) {
    using S = decltype(surrogate);
    chosen = {a.smooth ? fire_row<SmoothBelow<S, R>, R> : fire_row<Below, R>, slope_row<S, R>,
              !std::is_same_v<S, StraightThrough<R>>};
  });
  return chosen;
}

template <class R>
void forward(const Poisson& a, const RowIo<R>& io) {
  const Sampler<R> sampler = choose<R>(a);
  const int64_t size = a.samples * a.elements;
  const int64_t blocks = (size + kBlock - 1) / kBlock;
  const bool stream = a.steps * size * io.bytes >= kStreamBytes;
#pragma omp parallel for schedule(static) num_threads(a.threads)
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t begin = b * kBlock;
    const int64_t n = size - begin < kBlock ? size - begin : kBlock;
    alignas(64) Counters counters;
    alignas(64) R u[kLanes * kBlock], buffer[kBlock];
    counters.fill(a, begin, n);
    const R* r = io.load(a.rate, begin, buffer, n);
    for (int64_t t = 0; t < a.steps; t += kLanes) {
      draw(counters, static_cast<uint32_t>(t / kLanes), a.seed, u, n);
      for (int64_t lane = 0; lane < kLanes && t + lane < a.steps; ++lane) {
        sampler.fire(a, r, u + lane * kBlock, n);
        io.store(a.out, (t + lane) * size + begin, u + lane * kBlock, n, stream);
      }
    }
    stream_fence(stream);
  }
}

template <class R>
void backward(const Poisson& a, const RowIo<R>& io) {
  const Sampler<R> sampler = choose<R>(a);
  const int64_t size = a.samples * a.elements;
  const int64_t blocks = (size + kBlock - 1) / kBlock;
#pragma omp parallel for schedule(static) num_threads(a.threads)
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t begin = b * kBlock;
    const int64_t n = size - begin < kBlock ? size - begin : kBlock;
    alignas(64) Counters counters;
    alignas(64) R u[kLanes * kBlock], buffer[kBlock], ds_buffer[kBlock], sum[kBlock];
    memset(u, 0, sizeof u);
    memset(sum, 0, sizeof sum);
    counters.fill(a, begin, n);
    const R* r = io.load(a.rate, begin, buffer, n);
    for (int64_t t = 0; t < a.steps; t += kLanes) {
      if (sampler.slope_needs_uniforms) draw(counters, static_cast<uint32_t>(t / kLanes), a.seed, u, n);
      for (int64_t lane = 0; lane < kLanes && t + lane < a.steps; ++lane) {
        const R* ds = io.load(a.dspikes, (t + lane) * size + begin, ds_buffer, n);
        sampler.slope(a, r, u + lane * kBlock, ds, sum, n);
      }
    }
    io.store(a.out, begin, sum, n, false);
  }
}

}  // namespace

namespace ESVAE_ISA {

void poisson_forward(const Poisson& a) {
  with_row_io(a.dtype, [&](auto io) { forward(a, io); });
}

void poisson_backward(const Poisson& a) {
  with_row_io(a.dtype, [&](auto io) { backward(a, io); });
}

}  // namespace ESVAE_ISA
}  // namespace esvae
