// Moving a row of a tensor into the state's type and back: conversions, and stores that leave the cache alone.
// Internal linkage throughout: every vector width has its own copy.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "kernels.h"

#define ESVAE_RESTRICT __restrict__

namespace esvae {
namespace {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

inline uint32_t as_bits(float x) {
  uint32_t b;
  memcpy(&b, &x, 4);
  return b;
}
inline float as_float(uint32_t b) {
  float x;
  memcpy(&x, &b, 4);
  return x;
}

template <class R>
inline R widen(R x) {
  return x;
}
inline float widen(bf16 x) { return as_float(static_cast<uint32_t>(x.bits) << 16); }
inline float widen(f16 x) {
  // The exponent is re-biased by a multiplication, which normalises subnormals too; infinity and NaN need 112 more.
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t rest = static_cast<uint32_t>(x.bits & 0x7fffu);
  const uint32_t finite = as_bits(as_float(rest << 13) * 0x1p112f);
  const uint32_t special = (rest << 13) | 0x7f800000u;
  return as_float(sign | (rest >= 0x7c00u ? special : finite));
}

template <class S, class R>
struct Narrow {
  static S from(R x) { return x; }
};
template <>
struct Narrow<bf16, float> {
  static bf16 from(float x) {
    const uint32_t b = as_bits(x);
    const uint32_t rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;  // to nearest, ties to even
    return {static_cast<uint16_t>((b & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded)};
  }
};
template <>
struct Narrow<f16, float> {
  static f16 from(float x) {
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
  }
};

// A row in the state's type: the tensor itself where the types agree, else converted into `buffer`.
template <class S, class R>
inline const R* load_row(const S* ESVAE_RESTRICT row, R* ESVAE_RESTRICT buffer, int64_t n) {
  for (int64_t i = 0; i < n; ++i) buffer[i] = widen(row[i]);
  return buffer;
}
inline const float* load_row(const float* row, float*, int64_t) { return row; }
inline const double* load_row(const double* row, double*, int64_t) { return row; }

// Past this size a tensor does not stay in cache, and a store that bypasses it saves reading the line first.
constexpr int64_t kStreamBytes = int64_t{8} << 20;

inline void copy_bytes(void* dst, const void* src, int64_t bytes, bool stream) {
#if defined(__SSE2__)
  if (stream && bytes >= 64) {
    char* d = static_cast<char*>(dst);
    const char* s = static_cast<const char*>(src);
    const int64_t head = (16 - (reinterpret_cast<uintptr_t>(d) & 15)) & 15;
    memcpy(d, s, head);
    int64_t i = head;
    for (; i + 16 <= bytes; i += 16)
      _mm_stream_si128(reinterpret_cast<__m128i*>(d + i), _mm_loadu_si128(reinterpret_cast<const __m128i*>(s + i)));
    memcpy(d + i, s + i, bytes - i);
    return;
  }
#endif
  (void)stream;
  memcpy(dst, src, bytes);
}

// Streaming stores are weakly ordered: a fence before other threads may read.
inline void stream_fence(bool stream) {
#if defined(__SSE2__)
  if (stream) _mm_sfence();
#else
  (void)stream;
#endif
}

template <class S, class R>
inline void store_row(S* row, const R* values, int64_t n, bool stream) {
  if constexpr (sizeof(S) == sizeof(R)) {
    copy_bytes(row, values, n * static_cast<int64_t>(sizeof(S)), stream);
  } else {
    constexpr int64_t kPiece = 512;
    S piece[kPiece];
    for (int64_t i = 0; i < n; i += kPiece) {
      const int64_t m = n - i < kPiece ? n - i : kPiece;
      for (int64_t j = 0; j < m; ++j) piece[j] = Narrow<S, R>::from(values[i + j]);
      copy_bytes(row + i, piece, m * static_cast<int64_t>(sizeof(S)), stream);
    }
  }
}

// How rows of one element type come and go, by address: chosen once a call.
template <class R>
struct RowIo {
  int64_t bytes;  // of one element
  const R* (*load)(const void* tensor, int64_t offset, R* buffer, int64_t n);
  void (*store)(void* tensor, int64_t offset, const R* values, int64_t n, bool stream);
};

template <class S, class R>
RowIo<R> row_io() {
  return {sizeof(S),
          [](const void* tensor, int64_t offset, R* buffer, int64_t n) {
            return load_row(static_cast<const S*>(tensor) + offset, buffer, n);
          },
          [](void* tensor, int64_t offset, const R* values, int64_t n, bool stream) {
            store_row(static_cast<S*>(tensor) + offset, values, n, stream);
          }};
}

template <class F>
void with_row_io(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f64: return f(row_io<double, double>());
    case DType::f32: return f(row_io<float, float>());
    case DType::bf16: return f(row_io<bf16, float>());
    case DType::f16: return f(row_io<f16, float>());
  }
}

}  // namespace
}  // namespace esvae
