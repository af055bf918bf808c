// Philox lanes as vectors, for ../math/philox.h: the vector extension of GCC and Clang has all of it but the product.
#pragma once
#include <cstdint>

#include "../math/macros.h"
#include "rows.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the sampler takes the lower half of a 64-bit lane for the first of two words"
#endif

namespace esvae {
namespace {

#if !defined(__SSE2__)
constexpr int64_t kVector = 16;
#endif
typedef uint64_t Vector __attribute__((vector_size(kVector)));
constexpr uint64_t kLowHalf = 0xffffffffu;

ESVAE_HD Vector wide_product(uint32_t constant, Vector lane) {
#if defined(__AVX512F__)
  // All of it through the masked form: GCC 12 warns of the plain one's undefined operand.
  return (Vector)_mm512_maskz_mul_epu32(0xFF, (__m512i)lane, _mm512_set1_epi64(constant));
#elif defined(__AVX2__)
  return (Vector)_mm256_mul_epu32((__m256i)lane, _mm256_set1_epi64x(constant));
#elif defined(__SSE2__)
  return (Vector)_mm_mul_epu32((__m128i)lane, _mm_set1_epi64x(constant));
#else
  return (lane & kLowHalf) * static_cast<uint64_t>(constant);
#endif
}

// Four vectors that go through every step side by side: a round is a chain of three instructions with a latency of five
// cycles, and eight such chains keep the multipliers busy (with half as many it all takes 1.1 times as long).
struct Lanes {
  Vector even0, odd0, even1, odd1;  // of the first and the second half of kWords words
};
constexpr int64_t kWords = sizeof(Lanes) / sizeof(uint64_t);

ESVAE_HD Lanes operator^(Lanes x, Lanes y) {
  return {x.even0 ^ y.even0, x.odd0 ^ y.odd0, x.even1 ^ y.even1, x.odd1 ^ y.odd1};
}
ESVAE_HD Lanes operator^(Lanes x, uint64_t y) { return {x.even0 ^ y, x.odd0 ^ y, x.even1 ^ y, x.odd1 ^ y}; }
ESVAE_HD Lanes operator>>(Lanes x, int n) { return {x.even0 >> n, x.odd0 >> n, x.even1 >> n, x.odd1 >> n}; }
ESVAE_HD Lanes wide_product(uint32_t constant, Lanes x) {
  return {wide_product(constant, x.even0), wide_product(constant, x.odd0), wide_product(constant, x.even1),
          wide_product(constant, x.odd1)};
}

// A vector of 32-bit words is, as it lies, the lanes of its even words (what the upper halves hold does not matter)
// and, shifted, those of its odd ones.
ESVAE_HD Lanes load_lanes(const uint32_t* words) {
  Vector first, second;
  memcpy(&first, words, sizeof first);
  memcpy(&second, words + kWords / 2, sizeof second);
  return {first, first >> 32, second, second >> 32};
}

ESVAE_HD Lanes broadcast_lanes(uint64_t value) {
  const Vector v = Vector{} + value;
  return {v, v, v, v};
}

// The way back: the low, or the high, halves of the lanes as words.
ESVAE_HD Vector low_halves(Vector even, Vector odd) {
#if defined(__AVX512F__)
  return (Vector)_mm512_mask_shuffle_epi32((__m512i)even, 0xAAAA, (__m512i)odd, _MM_PERM_CCAA);
#else
  return (even & kLowHalf) | (odd << 32);
#endif
}
ESVAE_HD Vector high_halves(Vector even, Vector odd) {
#if defined(__AVX512F__)
  return (Vector)_mm512_mask_shuffle_epi32((__m512i)odd, 0x5555, (__m512i)even, _MM_PERM_DDBB);
#else
  return (even >> 32) | (odd & ~kLowHalf);
#endif
}

struct PackedWords {
  Vector half0, half1;
};
ESVAE_HD PackedWords operator^(PackedWords x, PackedWords y) { return {x.half0 ^ y.half0, x.half1 ^ y.half1}; }
ESVAE_HD PackedWords operator^(PackedWords x, Vector y) { return {x.half0 ^ y, x.half1 ^ y}; }
ESVAE_HD PackedWords low_words(Lanes x) { return {low_halves(x.even0, x.odd0), low_halves(x.even1, x.odd1)}; }
ESVAE_HD PackedWords high_words(Lanes x) { return {high_halves(x.even0, x.odd0), high_halves(x.even1, x.odd1)}; }

}  // namespace
}  // namespace esvae
