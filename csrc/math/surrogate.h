// The surrogate gradients: one struct, one formula each. `slope` is the derivative that the backward uses in place of
// the Heaviside step's; `smooth` is the function whose true derivative it is. Both take u = m - (threshold + shift).
// The scale is folded into each struct's constants, so that it costs nothing per element. NaN comes out as NaN, but for
// Rectangular (0) and the slope of StraightThrough.
// The ids are those of esvae_kernels/surrogate; the reference there states the same formulas in PyTorch.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>

#include "macros.h"

namespace esvae {
namespace {  // internal linkage: each vector width compiles its own copy, and the linker must not mix them

enum class SurrogateId : int {
  rectangular = 0,
  straight_through = 1,
  sigmoid = 2,
  atan = 3,
  triangular = 4,
  fast_sigmoid = 5,
  gaussian = 6,
  piecewise_exp = 7,
};

// The one shape parameter (a width, a steepness), and what multiplies value and derivative.
struct SurrogateShape {
  double shape, scale;
};

// exp without a library call, so that compilers vectorise it: 2^n * e^r with a degree-6 polynomial, 2 ulp.
// Below -87.7 it is 0 and above 88.4 infinity: there n leaves the exponent's range by one, which the bits of 2^n show.
// NaN fails both comparisons and goes through.
ESVAE_HD float fast_exp(float x) {
  x = x < -88.0f ? -88.0f : x;
  x = x > 89.0f ? 89.0f : x;
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
  uint32_t bits;  // unsigned: the shift drops the upper ones
  memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 127) << 23;
  float scale;
  memcpy(&scale, &bits, sizeof scale);
  return p * scale;
}
ESVAE_HD double fast_exp(double x) { return std::exp(x); }

// 1/width inside |u| < width/2, else 0 (paper, eq. 8 with alpha = width).
template <class R>
struct Rectangular {
  R half_width, height, half, area;
  explicit Rectangular(const SurrogateShape& s)
      : half_width(static_cast<R>(s.shape / 2)),
        height(static_cast<R>(s.scale / s.shape)),
        half(static_cast<R>(s.scale / 2)),
        area(static_cast<R>(s.scale)) {}
  ESVAE_HD R smooth(R u) const { return std::fabs(u) < half_width ? u * height + half : (u > 0 ? area : R(0)); }
  ESVAE_HD R slope(R u) const { return std::fabs(u) < half_width ? height : R(0); }
};

// 1 everywhere: the exact gradient of the expected Poisson spike.
template <class R>
struct StraightThrough {
  R height;
  explicit StraightThrough(const SurrogateShape& s) : height(static_cast<R>(s.scale)) {}
  ESVAE_HD R smooth(R u) const { return height * u; }
  ESVAE_HD R slope(R) const { return height; }
};

// alpha s (1 - s), s = sigmoid(alpha u).
template <class R>
struct Sigmoid {
  R alpha, height, area;
  explicit Sigmoid(const SurrogateShape& s)
      : alpha(static_cast<R>(s.shape)),
        height(static_cast<R>(s.shape * s.scale)),
        area(static_cast<R>(s.scale)) {}
  ESVAE_HD R smooth(R u) const { return area / (R(1) + fast_exp(-alpha * u)); }
  ESVAE_HD R slope(R u) const {
    const R s = R(1) / (R(1) + fast_exp(-alpha * u));
    return height * s * (R(1) - s);
  }
};

// (alpha/2) / (1 + (pi alpha u / 2)^2).
template <class R>
struct ATan {
  R half_pi_alpha, height, half, over_pi;
  explicit ATan(const SurrogateShape& s)
      : half_pi_alpha(static_cast<R>(M_PI * s.shape / 2)),
        height(static_cast<R>(s.shape / 2 * s.scale)),
        half(static_cast<R>(s.scale / 2)),
        over_pi(static_cast<R>(M_1_PI * s.scale)) {}
  ESVAE_HD R smooth(R u) const { return over_pi * std::atan(half_pi_alpha * u) + half; }
  ESVAE_HD R slope(R u) const {
    const R w = half_pi_alpha * u;
    return height / (R(1) + w * w);
  }
};

// max(0, 1 - |u|/width) / width.
template <class R>
struct Triangular {
  R over_width, height, steepness, half, area;
  explicit Triangular(const SurrogateShape& s)
      : over_width(static_cast<R>(1 / s.shape)),
        height(static_cast<R>(s.scale / s.shape)),
        steepness(static_cast<R>(s.scale / s.shape / s.shape)),
        half(static_cast<R>(s.scale / 2)),
        area(static_cast<R>(s.scale)) {}
  ESVAE_HD R smooth(R u) const {
    R w = u * over_width;
    w = w < R(-1) ? R(-1) : w;
    w = w > R(1) ? R(1) : w;
    return half + area * (w - w * std::fabs(w) / 2);
  }
  ESVAE_HD R slope(R u) const {
    const R y = height - std::fabs(u) * steepness;
    return y < R(0) ? R(0) : y;
  }
};

// 1 / (1 + slope |u|)^2.
template <class R>
struct FastSigmoid {
  R steepness, height, half_area;
  explicit FastSigmoid(const SurrogateShape& s)
      : steepness(static_cast<R>(s.shape)),
        height(static_cast<R>(s.scale)),
        half_area(static_cast<R>(s.scale / s.shape)) {}
  ESVAE_HD R smooth(R u) const {
    const R tail = R(1) / (R(1) + steepness * std::fabs(u));
    return half_area * (u > 0 ? R(2) - tail : tail);
  }
  ESVAE_HD R slope(R u) const {
    const R d = R(1) + steepness * std::fabs(u);
    return height / (d * d);
  }
};

// The normal density: exp(-(u/sigma)^2 / 2) / (sigma sqrt(2 pi)).
template <class R>
struct Gaussian {
  R over_sqrt2_sigma, height, half;
  explicit Gaussian(const SurrogateShape& s)
      : over_sqrt2_sigma(static_cast<R>(M_SQRT1_2 / s.shape)),
        height(static_cast<R>(s.scale / (s.shape * sqrt(2 * M_PI)))),
        half(static_cast<R>(s.scale / 2)) {}
  ESVAE_HD R smooth(R u) const { return half + half * std::erf(over_sqrt2_sigma * u); }
  ESVAE_HD R slope(R u) const {
    const R w = over_sqrt2_sigma * u;
    return height * fast_exp(-w * w);
  }
};

// (alpha/2) exp(-alpha |u|).
template <class R>
struct PiecewiseExp {
  R alpha, height, half;
  explicit PiecewiseExp(const SurrogateShape& s)
      : alpha(static_cast<R>(s.shape)),
        height(static_cast<R>(s.shape / 2 * s.scale)),
        half(static_cast<R>(s.scale / 2)) {}
  ESVAE_HD R smooth(R u) const {
    const R tail = fast_exp(-alpha * std::fabs(u));
    return half * (u > 0 ? R(2) - tail : tail);
  }
  ESVAE_HD R slope(R u) const { return height * fast_exp(-alpha * std::fabs(u)); }
};

// Calls f with the surrogate that `id` names; false if there is none.
template <class R, class F>
bool with_surrogate(SurrogateId id, const SurrogateShape& shape, F&& f) {
  switch (id) {
    case SurrogateId::rectangular: f(Rectangular<R>(shape)); return true;
    case SurrogateId::straight_through: f(StraightThrough<R>(shape)); return true;
    case SurrogateId::sigmoid: f(Sigmoid<R>(shape)); return true;
    case SurrogateId::atan: f(ATan<R>(shape)); return true;
    case SurrogateId::triangular: f(Triangular<R>(shape)); return true;
    case SurrogateId::fast_sigmoid: f(FastSigmoid<R>(shape)); return true;
    case SurrogateId::gaussian: f(Gaussian<R>(shape)); return true;
    case SurrogateId::piecewise_exp: f(PiecewiseExp<R>(shape)); return true;
  }
  return false;
}

// Any of them, to be built on the host and chosen on a GPU, where a branch that all threads take alike costs little.
template <class R>
struct AnySurrogate {
  SurrogateId id;
  union {
    Rectangular<R> rectangular;
    StraightThrough<R> straight_through;
    Sigmoid<R> sigmoid;
    ATan<R> atan;
    Triangular<R> triangular;
    FastSigmoid<R> fast_sigmoid;
    Gaussian<R> gaussian;
    PiecewiseExp<R> piecewise_exp;
  };

  AnySurrogate(int number, const SurrogateShape& shape)
      : id(static_cast<SurrogateId>(number)), rectangular(shape) {
    with_surrogate<R>(id, shape, [this](auto chosen) { new (static_cast<void*>(&rectangular)) decltype(chosen)(chosen); });
  }

  // Calls f with the one that it is.
  template <class F>
  ESVAE_DEVICE void visit(F&& f) const {
    switch (id) {
      case SurrogateId::rectangular: return f(rectangular);
      case SurrogateId::straight_through: return f(straight_through);
      case SurrogateId::sigmoid: return f(sigmoid);
      case SurrogateId::atan: return f(atan);
      case SurrogateId::triangular: return f(triangular);
      case SurrogateId::fast_sigmoid: return f(fast_sigmoid);
      case SurrogateId::gaussian: return f(gaussian);
      case SurrogateId::piecewise_exp: return f(piecewise_exp);
    }
  }
};

}  // namespace
}  // namespace esvae
