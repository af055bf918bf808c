// Philox lanes as vectors, for ../math/philox.h: GCC's and Clang's vector extension has every operation but the product.
#pragma once
#include <cstdint>

#include "rows.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the sampler takes the lower half of a 64-bit lane for the first of two words"
#endif

namespace esvae {
namespace {

#if !defined(__SSE2__)
constexpr int64_t kVector = 16;
#endif
typedef uint64_t Lanes __attribute__((vector_size(kVector)));

inline __attribute__((always_inline)) Lanes wide_product(uint32_t constant, Lanes lane) {
#if defined(__AVX512F__)
  return (Lanes)_mm512_mul_epu32((__m512i)lane, _mm512_set1_epi64(constant));
#elif defined(__AVX2__)
  return (Lanes)_mm256_mul_epu32((__m256i)lane, _mm256_set1_epi64x(constant));
#elif defined(__SSE2__)
  return (Lanes)_mm_mul_epu32((__m128i)lane, _mm_set1_epi64x(constant));
#else
  return (lane & static_cast<uint64_t>(0xffffffffu)) * static_cast<uint64_t>(constant);
#endif
}

}  // namespace
}  // namespace esvae
