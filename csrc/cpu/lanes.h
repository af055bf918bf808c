// Philox lanes as vectors, for ../math/philox.h: GCC's and Clang's vector extension has every operation but the product.
#pragma once
#include <cstdint>

#include "rows.h"

namespace esvae {
namespace {

#if defined(__SSE2__)
typedef uint64_t Lanes __attribute__((vector_size(kVector)));
typedef uint32_t Words __attribute__((vector_size(kVector / 2)));
inline __attribute__((always_inline)) Lanes wide_product(uint32_t constant, Lanes lane) {
#if defined(__AVX512F__)
  return (Lanes)_mm512_mul_epu32((__m512i)lane, _mm512_set1_epi64(constant));
#elif defined(__AVX2__)
  return (Lanes)_mm256_mul_epu32((__m256i)lane, _mm256_set1_epi64x(constant));
#else
  return (Lanes)_mm_mul_epu32((__m128i)lane, _mm_set1_epi64x(constant));
#endif
}
#else
typedef uint64_t Lanes;
typedef uint32_t Words;
#endif

// The low halves of the lanes.
inline Words low_words(Lanes lanes) {
#if defined(__SSE2__)
  return __builtin_convertvector(lanes, Words);
#else
  return static_cast<Words>(lanes);
#endif
}

constexpr int64_t kWidth = sizeof(Lanes) / sizeof(uint64_t);

}  // namespace
}  // namespace esvae
