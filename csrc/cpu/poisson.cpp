// The Poisson spike sampler: the uniforms are drawn in registers, compared and forgotten; the backward draws them anew.
// Compiled once per vector width (ESVAE_ISA).
#include <type_traits>

#include "kernels.h"
#include "lanes.h"  // before philox.h, whose template must see the vectors' product
#include "parallel.h"
#include "rows.h"

#include "../math/philox.h"
#include "../math/surrogate.h"

#define ESVAE_INLINE_LAMBDA __attribute__((always_inline))

namespace esvae {
namespace {

constexpr int64_t kLanes = 4;           // time steps that one counter serves
constexpr int64_t kSamplerBlock = 256;  // elements that a thread takes through time at once: all of it stays in L1
constexpr int64_t kShare = 2048;        // elements that a thread takes at once: a fence costs as much as 500 uniforms
constexpr int64_t kStep = 32;           // elements that are compared at once; shorter loops GCC unrolls into scalars
constexpr int64_t kGroupsAhead = 2;     // of kLanes time steps: how early a gradient is asked for

// The words of kLanes time steps for kStep elements. It never meets memory: loops over it run to constants, so that
// the compiler keeps it in registers.
struct Words {
  alignas(64) uint32_t row[kLanes][kStep];
};

// The random words of a block of elements.
class Draw {
 public:
  // Takes the elements begin .. begin+n-1: position within the sample, and the sample's id.
  Draw(const Poisson& a, int64_t begin, int64_t n) : keys_(stream_key(*a.seed, a.noise_stream)) {
    alignas(64) uint32_t element[kSamplerBlock], id_low[kSamplerBlock], id_high[kSamplerBlock];
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
    for (int64_t i = n; i % kStep; ++i) element[i] = id_low[i] = id_high[i] = 0;
    for (int64_t i = 0; i < n; i += kWords)
      start_[i / kWords].set(load_lanes(element + i), load_lanes(id_low + i), load_lanes(id_high + i), keys_);
  }

  // use(i, words) for i = 0, kStep, ... below n: the words of time steps t .. t+kLanes-1 of the elements i ..
  // i+kStep-1. The tenth round is done here, on words: upper halves need not be shifted down only to be put back.
  template <class Use>
  ESVAE_HD void operator()(int64_t t, int64_t n, Use&& use) const {
    const PhiloxKeys keys = keys_;
    const Vector zero{}, k0 = zero + (keys.k0[9] | keys.k0[9] << 32), k1 = zero + (keys.k1[9] | keys.k1[9] << 32);
    for (int64_t i = 0; i < n; i += kStep) {
      Words words;
      ESVAE_UNROLL(4)
      for (int64_t j = 0; j < kStep; j += kWords) {
        const PhiloxState<Lanes> s = start_[(i + j) / kWords].at(broadcast_lanes(t / kLanes), keys);
        const Lanes a = wide_product(kPhiloxM0, s.c0), b = wide_product(kPhiloxM1, s.c2);
        const PackedWords drawn[kLanes] = {high_words(b) ^ low_words(s.c1) ^ k0, low_words(b),
                                           high_words(a) ^ low_words(s.c3) ^ k1, low_words(a)};
        ESVAE_UNROLL(4)
        for (int lane = 0; lane < kLanes; ++lane) memcpy(words.row[lane] + j, &drawn[lane], sizeof drawn[lane]);
      }
      use(i, words);
    }
  }

 private:
  PhiloxKeys keys_;
  PhiloxStart<Lanes> start_[kSamplerBlock / kWords];
};

// u = k 2^-24 is below r where the integer k is below r 2^24, rounded up: 0 for a rate that never fires (NaN is one),
// 2^24 for one that always does. The product is exact, in fp32 and fp64.
template <class R>
void load_thresholds(const Poisson& a, int64_t begin, int64_t n, int32_t* ESVAE_RESTRICT thresholds) {
  alignas(64) R buffer[kSamplerBlock], scaled[kSamplerBlock];
  const R* ESVAE_RESTRICT r = row_io<R>(a.dtype).load(a.rate, begin, buffer, n);
  for (int64_t i = 0; i < n; ++i) {
    const R positive = r[i] > R(0) ? r[i] : R(0);
    scaled[i] = (positive < R(1) ? positive : R(1)) * R(0x1p24);
  }
  for (int64_t i = 0; i < n; ++i) {
    const int32_t whole = static_cast<int32_t>(scaled[i]);
    thresholds[i] = whole + (static_cast<R>(whole) < scaled[i] ? 1 : 0);
  }
}

// kStep elements of a row, or what is left of it.
template <class S>
ESVAE_HD void store_words(S* row, const S* values, int64_t left, bool stream) {
  constexpr int64_t bytes = kStep * sizeof(S);
  if (left < kStep) {
    memcpy(row, values, left * sizeof(S));
    return;
  }
#if defined(__SSE2__)
  if (stream && bytes % kVector == 0) {
    for (int64_t i = 0; i < bytes; i += kVector)
      stream_vector(reinterpret_cast<char*>(row) + i, reinterpret_cast<const char*>(values) + i);
    return;
  }
#endif
  memcpy(row, values, bytes);
}

// Spikes of a type whose bits are S and whose 1 has the bits `one`.
template <class S>
void fire(const Poisson& a, S one) {
  const int64_t size = a.samples * a.elements, row_bytes = size * static_cast<int64_t>(sizeof(S));
  S* const out = static_cast<S*>(a.out);
  const bool aligned = (reinterpret_cast<uintptr_t>(out) | static_cast<uintptr_t>(row_bytes)) % kVector == 0;
  const bool stream = aligned && a.steps * row_bytes >= kStreamBytes;
  const auto block = [&](int64_t begin, int64_t n) {
    const Draw draw(a, begin, n);
    alignas(64) int32_t thresholds[kSamplerBlock] = {};
    (a.dtype == DType::f64 ? load_thresholds<double> : load_thresholds<float>)(a, begin, n, thresholds);
    for (int64_t t = 0; t < a.steps; t += kLanes) {
      S* const rows = out + t * size + begin;
      const int64_t lanes = a.steps - t;
      draw(t, n, [=, &thresholds](int64_t i, const Words& words) ESVAE_INLINE_LAMBDA {
        ESVAE_UNROLL(4)
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          alignas(64) S spikes[kStep];
          for (int64_t j = 0; j < kStep; ++j)
            spikes[j] = static_cast<int32_t>(words.row[lane][j] >> 8) < thresholds[i + j] ? one : S(0);
          if (lane < lanes) store_words(rows + lane * size + i, spikes, n - i, stream);
        }
      });
    }
  };
  parallel_blocks(size, kShare, a.place.threads, [&](int64_t begin, int64_t n) {
    for (int64_t i = 0; i < n; i += kSamplerBlock) block(begin + i, n - i < kSamplerBlock ? n - i : kSamplerBlock);
    stream_fence(stream);
  });
}

template <class Surrogate, class R>
void smooth_row(const Poisson& a, const R* r, const uint32_t* words, R* s, int64_t n) {
  const Surrogate surrogate({a.shape, a.scale});
  const R shift = static_cast<R>(a.shift);
  for (int64_t i = 0; i < n; ++i) s[i] = surrogate.smooth((r[i] - uniform<R>(words[i])) - shift);
}

// Smooth spikes are for checking gradients: simple rather than fast.
template <class R>
void fire_smoothly(const Poisson& a) {
  void (*smooth)(const Poisson&, const R*, const uint32_t*, R*, int64_t) = nullptr;
  with_surrogate<R>(static_cast<SurrogateId>(a.surrogate), {a.shape, a.scale},
                    [&](auto surrogate) { smooth = smooth_row<decltype(surrogate), R>; });
  const RowIo<R> rate_io = row_io<R>(a.dtype), io = row_io<R>(a.spikes_dtype);
  const int64_t size = a.samples * a.elements;
  parallel_blocks(size, kSamplerBlock, a.place.threads, [&](int64_t begin, int64_t n) {
    const Draw draw(a, begin, n);
    alignas(64) R buffer[kSamplerBlock], s[kSamplerBlock];
    alignas(64) uint32_t noise[kLanes][kSamplerBlock];
    const R* r = rate_io.load(a.rate, begin, buffer, n);
    for (int64_t t = 0; t < a.steps; t += kLanes) {
      draw(t, n, [&](int64_t i, const Words& words) {
        for (int64_t lane = 0; lane < kLanes; ++lane) memcpy(noise[lane] + i, words.row[lane], sizeof words.row[lane]);
      });
      for (int64_t lane = 0; lane < kLanes && t + lane < a.steps; ++lane) {
        smooth(a, r, noise[lane], s, n);
        io.store(a.out, (t + lane) * size + begin, s, n, false);
      }
    }
  });
}

// A row that may be read up to whole multiples of kStep: the tensor itself, or a copy in `buffer`.
template <class R>
const R* load_padded(const RowIo<R>& io, const void* tensor, int64_t offset, R* buffer, int64_t n) {
  const R* row = io.load(tensor, offset, buffer, n);
  if (n % kStep == 0) return row;
  if (row != buffer) memcpy(buffer, row, n * sizeof(R));
  memset(buffer + n, 0, (kStep - n % kStep) * sizeof(R));
  return buffer;
}

template <class Surrogate, class R>
void backward(const Poisson& a) {
  const Surrogate surrogate({a.shape, a.scale});
  const R shift = static_cast<R>(a.shift);
  const RowIo<R> rate_io = row_io<R>(a.dtype), io = row_io<R>(a.spikes_dtype);
  const int64_t size = a.samples * a.elements, bytes = io.bytes, groups = (a.steps + kLanes - 1) / kLanes;
  const auto block = [&, surrogate, shift, size, bytes, groups](int64_t begin, int64_t n) {
    const Draw draw(a, begin, n);
    alignas(64) R buffer[kSamplerBlock], ds_buffer[kLanes][kSamplerBlock], sum[kSamplerBlock] = {};
    const R* r = load_padded(rate_io, a.rate, begin, buffer, n);
    for (int64_t t = 0; t < a.steps; t += kLanes) {
      const R* ds[kLanes];
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        if (t + lane < a.steps)
          ds[lane] = load_padded(io, a.dspikes, (t + lane) * size + begin, ds_buffer[lane], n);
        else
          ds[lane] = static_cast<R*>(memset(ds_buffer[lane], 0, sizeof ds_buffer[lane]));
      }
      const int64_t group = t / kLanes + kGroupsAhead;  // of this block, or of one that comes after it
      const int64_t next_t = group % groups * kLanes, next_begin = begin + group / groups * kSamplerBlock;
      const int64_t next_lanes = next_begin + n <= size ? a.steps - next_t : 0;
      const char* const next = static_cast<const char*>(a.dspikes) + (next_t * size + next_begin) * bytes;
      R* const total = sum;
      // By value: what is captured by reference is read anew after every store.
      draw(t, n, [=](int64_t i, const Words& words) ESVAE_INLINE_LAMBDA {
        for (int64_t lane = 0; lane < next_lanes && lane < kLanes; ++lane)
          prefetch_bytes(next + (lane * size + i) * bytes, kStep * bytes);
        alignas(64) R added[kStep] = {};
        ESVAE_UNROLL(4)
        for (int64_t lane = 0; lane < kLanes; ++lane)
          for (int64_t j = 0; j < kStep; ++j)
            added[j] += ds[lane][i + j] * surrogate.slope((r[i + j] - uniform<R>(words.row[lane][j])) - shift);
        for (int64_t j = 0; j < kStep; ++j) total[i + j] += added[j];
      });
    }
    rate_io.store(a.out, begin, sum, n, false);
  };
  parallel_blocks(size, kSamplerBlock, a.place.threads, block);
}

// A slope that is the same everywhere needs no uniforms.
template <class R>
void backward_of_constant(const Poisson& a, R slope) {
  constexpr int64_t block = kBlock<R>;
  const RowIo<R> rate_io = row_io<R>(a.dtype), io = row_io<R>(a.spikes_dtype);
  const int64_t size = a.samples * a.elements;
  parallel_blocks(size, block, a.place.threads, [&](int64_t begin, int64_t n) {
    alignas(64) R buffer[block], sum[block] = {};
    for (int64_t t = 0; t < a.steps; ++t) {
      const R* ds = io.load(a.dspikes, t * size + begin, buffer, n);
      for_pieces(n, [&](int64_t i, int64_t k) {
        if (t + kAhead < a.steps) io.prefetch(a.dspikes, (t + kAhead) * size + begin + i, k);
        for (int64_t j = i; j < i + k; ++j) sum[j] += ds[j] * slope;
      });
    }
    rate_io.store(a.out, begin, sum, n, false);
  });
}

}  // namespace

namespace ESVAE_ISA {

void poisson_forward(const Poisson& a) {
  if (a.smooth) {
    with_state(a.dtype, [&](auto zero) { fire_smoothly<decltype(zero)>(a); });
    return;
  }
  switch (a.spikes_dtype) {
    case DType::f64: return fire<uint64_t>(a, 0x3ff0000000000000u);
    case DType::f32: return fire<uint32_t>(a, 0x3f800000u);
    case DType::bf16: return fire<uint16_t>(a, 0x3f80u);
    case DType::f16: return fire<uint16_t>(a, 0x3c00u);
    case DType::u8: return fire<uint8_t>(a, 1u);
  }
}

void poisson_backward(const Poisson& a) {
  with_state(a.dtype, [&](auto zero) {
    using R = decltype(zero);
    with_surrogate<R>(static_cast<SurrogateId>(a.surrogate), {a.shape, a.scale}, [&](auto surrogate) {
      using S = decltype(surrogate);
      if constexpr (std::is_same_v<S, StraightThrough<R>>)
        backward_of_constant<R>(a, surrogate.slope(R(0)));
      else
        backward<S, R>(a);
    });
  });
}

}  // namespace ESVAE_ISA
}  // namespace esvae
