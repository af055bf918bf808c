// The Poisson spike sampler: the uniforms are drawn in L1, compared and forgotten; the backward draws them again.
// Compiled once per vector width (ESVAE_ISA).
#include <type_traits>

#include "kernels.h"
#include "lanes.h"  // before philox.h, whose template must see the vectors' product
#include "rows.h"

#include "../math/philox.h"

namespace esvae {
namespace {

constexpr int64_t kSamplerBlock = 2048;
constexpr int64_t kLanes = 4;  // time steps that one counter serves

constexpr int64_t kPair = kVector / sizeof(uint32_t);  // words in two vectors of lanes

// The counters of a block of elements, padded to whole vectors: position within the sample, and the sample's id.
struct Counters {
  alignas(64) uint32_t element[kSamplerBlock + kPair], id_low[kSamplerBlock + kPair], id_high[kSamplerBlock + kPair];

  void fill(const Poisson& a, int64_t begin, int64_t n) {
    int64_t sample = begin / a.elements, position = begin % a.elements;
    for (int64_t i = 0; i < n; ++sample, position = 0) {
      const int64_t left = a.elements - position < n - i ? a.elements - position : n - i;
      const uint64_t id = static_cast<uint64_t>(a.ids[sample]);
      for (int64_t j = 0; j < left; ++j) {
        element[i + j] = static_cast<uint32_t>(position + j);
        id_low[i + j] = static_cast<uint32_t>(id);
        id_high[i + j] = static_cast<uint32_t>(id >> 32);
      }
      i += left;
    }
    for (int64_t i = n; i % kPair; ++i) element[i] = id_low[i] = id_high[i] = 0;
  }
};

// The words of kLanes time steps for a block. A vector of 32-bit counters is, as it lies, the lanes of its even
// elements (their upper halves do not matter) and, shifted, those of its odd ones; the words are put back the same way.
struct Draw {
  alignas(64) uint32_t word[kLanes][kSamplerBlock + kPair];

  void operator()(const Counters& c, int64_t group, uint64_t seed, int64_t n) {
    const uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    const Lanes time = Lanes{} + static_cast<uint64_t>(group);
    for (int64_t i = 0; i < n; i += kPair) {
      Lanes element, low, high;
      memcpy(&element, c.element + i, sizeof element);
      memcpy(&low, c.id_low + i, sizeof low);
      memcpy(&high, c.id_high + i, sizeof high);
      const auto even = philox<Lanes>(element, time, low, high, k0, k1);
      const auto odd = philox<Lanes>(element >> 32, time, low >> 32, high >> 32, k0, k1);
      for (int lane = 0; lane < kLanes; ++lane) {
        const Lanes words = (even.word[lane] & static_cast<uint64_t>(0xffffffffu)) | (odd.word[lane] << 32);
        memcpy(word[lane] + i, &words, sizeof words);
      }
    }
  }
};

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

template <class Fire, class R>
void fire_row(const Poisson& a, const R* ESVAE_RESTRICT r, const uint32_t* ESVAE_RESTRICT words, R* ESVAE_RESTRICT s,
              int64_t n) {
  const Fire fire(a);
  for (int64_t i = 0; i < n; ++i) s[i] = fire(r[i], uniform<R>(words[i]));
}

template <class Surrogate, class R>
void slope_row(const Poisson& a, const R* ESVAE_RESTRICT r, const uint32_t* ESVAE_RESTRICT words,
               const R* ESVAE_RESTRICT ds, R* ESVAE_RESTRICT sum, int64_t n) {
  const Surrogate surrogate(a.shape);
  const R center = static_cast<R>(a.center);
  for (int64_t i = 0; i < n; ++i) sum[i] += ds[i] * surrogate.slope((r[i] - uniform<R>(words[i])) - center);
}

template <class R>
struct Sampler {
  void (*fire)(const Poisson&, const R*, const uint32_t*, R*, int64_t) = nullptr;
  void (*slope)(const Poisson&, const R*, const uint32_t*, const R*, R*, int64_t) = nullptr;
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
  const bool stream = a.steps * size * io.bytes >= kStreamBytes;
#pragma omp parallel for schedule(static) num_threads(a.threads)
  for (int64_t begin = 0; begin < size; begin += kSamplerBlock) {
    const int64_t n = size - begin < kSamplerBlock ? size - begin : kSamplerBlock;
    Counters counters;
    Draw draw;
    alignas(64) R s[kSamplerBlock], buffer[kSamplerBlock];
    counters.fill(a, begin, n);
    const R* r = io.load(a.rate, begin, buffer, n);
    for (int64_t t = 0; t < a.steps; t += kLanes) {
      draw(counters, t / kLanes, a.seed, n);
      for (int64_t lane = 0; lane < kLanes && t + lane < a.steps; ++lane) {
        sampler.fire(a, r, draw.word[lane], s, n);
        io.store(a.out, (t + lane) * size + begin, s, n, stream);
      }
    }
    stream_fence(stream);
  }
}

template <class R>
void backward(const Poisson& a, const RowIo<R>& io) {
  const Sampler<R> sampler = choose<R>(a);
  const int64_t size = a.samples * a.elements;
#pragma omp parallel for schedule(static) num_threads(a.threads)
  for (int64_t begin = 0; begin < size; begin += kSamplerBlock) {
    const int64_t n = size - begin < kSamplerBlock ? size - begin : kSamplerBlock;
    Counters counters;
    Draw draw;
    alignas(64) R buffer[kSamplerBlock], ds_buffer[kSamplerBlock], sum[kSamplerBlock];
    memset(draw.word, 0, sizeof draw.word);
    memset(sum, 0, sizeof sum);
    if (sampler.slope_needs_uniforms) counters.fill(a, begin, n);
    const R* r = io.load(a.rate, begin, buffer, n);
    for (int64_t t = 0; t < a.steps; t += kLanes) {
      if (sampler.slope_needs_uniforms) draw(counters, t / kLanes, a.seed, n);
      for (int64_t lane = 0; lane < kLanes && t + lane < a.steps; ++lane) {
        const R* ds = io.load(a.dspikes, (t + lane) * size + begin, ds_buffer, n);
        for_pieces(n, [&](int64_t i, int64_t k) {
          if (t + lane + kAhead < a.steps) io.prefetch(a.dspikes, (t + lane + kAhead) * size + begin + i, k);
          sampler.slope(a, r + i, draw.word[lane] + i, ds + i, sum + i, k);
        });
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
