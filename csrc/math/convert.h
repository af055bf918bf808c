// The types that tensors are stored in, and their way to the state's type and back, rounding to nearest, ties to even.
// A GPU has instructions for it.
#pragma once
#include <cstdint>
#include <cstring>

#include "macros.h"

namespace esvae {
namespace {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

ESVAE_HD uint32_t as_bits(float x) {
  uint32_t b;
  memcpy(&b, &x, 4);
  return b;
}
ESVAE_HD float as_float(uint32_t b) {
  float x;
  memcpy(&x, &b, 4);
  return x;
}

template <class S>
ESVAE_HD S widen(S x) {
  return x;
}
ESVAE_HD float widen(bf16 x) { return as_float(static_cast<uint32_t>(x.bits) << 16); }
ESVAE_HD float widen(f16 x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
#else
  // In integers, but for subnormals: between 2^-14 and 2^-13 their mantissa is in its place, and 2^-14 is taken off. No
  // number here is subnormal in fp32, so that it is right also where those count as zero.
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t rest = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  const uint32_t subnormal = as_bits(as_float(rest + 0x38800000u) - 0x1p-14f);
  const uint32_t normal = rest + (rest >= 0x0f800000u ? 0x70000000u : 0x38000000u);  // infinity and NaN: 112 once more
  return as_float(sign | (rest < 0x00800000u ? subnormal : normal));
#endif
}

template <class S, class R>
struct Narrow {
  ESVAE_HD static S from(R x) { return static_cast<S>(x); }
};
template <>
struct Narrow<bf16, float> {
  ESVAE_HD static bf16 from(float x) {
#ifdef __CUDA_ARCH__
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
#else
    const uint32_t b = as_bits(x);
    const uint32_t rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;  // to nearest, ties to even
    return {static_cast<uint16_t>((b & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded)};
#endif
  }
};
template <>
struct Narrow<f16, float> {
  ESVAE_HD static f16 from(float x) {
#ifdef __CUDA_ARCH__
    f16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
#else
    const uint32_t b = as_bits(x);
    const uint32_t sign = (b >> 16) & 0x8000u;
    const uint32_t a = b & 0x7fffffffu;
    // Below 2^-14 the result is subnormal: adding 0.5 leaves its 10 bits, rounded to even, in the low mantissa.
    const uint32_t subnormal = as_bits(as_float(a) + 0.5f) - 0x3f000000u;
    const uint32_t normal = (a - 0x38000000u + 0xfffu + ((a >> 13) & 1u)) >> 13;
    uint32_t h = a < 0x38800000u ? subnormal : normal;
    h = a >= 0x477ff000u ? 0x7c00u : h;  // 65520 and above round to infinity
    h = a > 0x7f800000u ? 0x7e00u : h;
    return {static_cast<uint16_t>(sign | h)};
#endif
  }
};

template <class S>
struct Narrow<S, double> {  // by way of fp32, as torch does
  ESVAE_HD static S from(double x) { return Narrow<S, float>::from(static_cast<float>(x)); }
};
template <>
struct Narrow<double, double> {
  ESVAE_HD static double from(double x) { return x; }
};

}  // namespace
}  // namespace esvae
