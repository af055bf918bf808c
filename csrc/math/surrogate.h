// The surrogate gradients: one struct, one formula each. `slope` is the derivative that the backward uses in place of
// the Heaviside step's; `smooth` is the function whose true derivative it is. Both take u = m - (threshold + center).
// The ids are those of esvae_kernels/surrogate; the reference there states the same formulas in PyTorch.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define ESVAE_HD __host__ __device__ __forceinline__
#else
#define ESVAE_HD inline __attribute__((always_inline))
#endif

namespace esvae {
namespace {  // internal linkage: each vector width compiles its own copy, and the linker must not mix them

enum class SurrogateId : int { rectangular = 0, straight_through = 1, sigmoid = 2, atan = 3 };

// exp without a library call, so that compilers vectorise it: 2^n * e^r with a degree-6 polynomial, 2 ulp.
ESVAE_HD float fast_exp(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low mantissa bits.
  const float shifted = x * 1.44269504f + 12582912.0f;
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  float p = 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  int32_t bits;
  memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 127) << 23;
  float scale;
  memcpy(&scale, &bits, sizeof scale);
  return p * scale;
}
ESVAE_HD double fast_exp(double x) { return exp(x); }

// 1/width inside |u| < width/2, else 0 (paper, eq. 8 with alpha = width).
template <class R>
struct Rectangular {
  R half, height;
  explicit Rectangular(double width) : half(static_cast<R>(width / 2)), height(static_cast<R>(1 / width)) {}
  ESVAE_HD R smooth(R u) const { return fabs(u) < half ? u * height + R(0.5) : (u > 0 ? R(1) : R(0)); }
  ESVAE_HD R slope(R u) const { return fabs(u) < half ? height : R(0); }
};

// 1 everywhere: the exact gradient of the expected Poisson spike.
template <class R>
struct StraightThrough {
  explicit StraightThrough(double) {}
  ESVAE_HD R smooth(R u) const { return u; }
  ESVAE_HD R slope(R) const { return R(1); }
};

// alpha s (1 - s), s = sigmoid(alpha u).
template <class R>
struct Sigmoid {
  R alpha;
  explicit Sigmoid(double a) : alpha(static_cast<R>(a)) {}
  ESVAE_HD R smooth(R u) const { return R(1) / (R(1) + fast_exp(-alpha * u)); }
  ESVAE_HD R slope(R u) const {
    const R s = smooth(u);
    return alpha * s * (R(1) - s);
  }
};

// (alpha/2) / (1 + (pi alpha u / 2)^2).
template <class R>
struct ATan {
  R half_alpha, half_pi_alpha;
  explicit ATan(double a) : half_alpha(static_cast<R>(a / 2)), half_pi_alpha(static_cast<R>(M_PI * a / 2)) {}
  ESVAE_HD R smooth(R u) const { return R(M_1_PI) * atan(half_pi_alpha * u) + R(0.5); }
  ESVAE_HD R slope(R u) const {
    const R w = half_pi_alpha * u;
    return half_alpha / (R(1) + w * w);
  }
};

// Calls f with the surrogate that `id` names; false if there is none.
template <class R, class F>
bool with_surrogate(SurrogateId id, double shape, F&& f) {
  switch (id) {
    case SurrogateId::rectangular: f(Rectangular<R>(shape)); return true;
    case SurrogateId::straight_through: f(StraightThrough<R>(shape)); return true;
    case SurrogateId::sigmoid: f(Sigmoid<R>(shape)); return true;
    case SurrogateId::atan: f(ATan<R>(shape)); return true;
  }
  return false;
}

}  // namespace
}  // namespace esvae
