// Moving a row of a tensor into the state's type and back: conversions, and stores that leave the cache alone.
// Internal linkage throughout: every vector width has its own copy.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__SSE2__)
#include <immintrin.h>
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

// One store of the widest vector that this build has; `dst` is aligned to it.
#if defined(__AVX512F__)
constexpr int64_t kVector = 64;
inline void stream_vector(char* dst, const char* src) {
  _mm512_stream_si512(reinterpret_cast<__m512i*>(dst), _mm512_loadu_si512(src));
}
#elif defined(__AVX2__)
constexpr int64_t kVector = 32;
inline void stream_vector(char* dst, const char* src) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(dst), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(src)));
}
#elif defined(__SSE2__)
constexpr int64_t kVector = 16;
inline void stream_vector(char* dst, const char* src) {
  _mm_stream_si128(reinterpret_cast<__m128i*>(dst), _mm_loadu_si128(reinterpret_cast<const __m128i*>(src)));
}
#endif

inline void copy_bytes(void* dst, const void* src, int64_t bytes, bool stream) {
#if defined(__SSE2__)
  if (stream && bytes >= kVector) {
    char* d = static_cast<char*>(dst);
    const char* s = static_cast<const char*>(src);
    int64_t i = (kVector - (reinterpret_cast<uintptr_t>(d) & (kVector - 1))) & (kVector - 1);
    memcpy(d, s, i);
    for (; i + kVector <= bytes; i += kVector) stream_vector(d + i, s + i);
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

// The rows of consecutive time steps lie far apart, and the hardware's prefetcher starts anew on each: ask for them
// early, into L2, a piece at a time so that the requests do not queue up in front of the loads.
constexpr int64_t kAhead = 2;    // rows
constexpr int64_t kPiece = 512;  // elements

inline void prefetch_bytes(const char* row, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(row + i, 0, 2);
}

template <class F>
inline void for_pieces(int64_t n, F&& f) {
  for (int64_t i = 0; i < n; i += kPiece) f(i, n - i < kPiece ? n - i : kPiece);
}

// Neurons that a thread takes through time at once: as many as keep 16 rows of state in L2, but no fewer threads busy.
template <class R>
constexpr int64_t kBlock = int64_t{16384} / sizeof(R);

template <class R>
inline int64_t block_size(int64_t size, int threads) {
  const int64_t share = ((size + threads - 1) / threads + 63) / 64 * 64;
  return share < 64 ? 64 : (share < kBlock<R> ? share : kBlock<R>);
}

template <class S, class R>
inline void store_row(S* row, const R* values, int64_t n, bool stream) {
  if constexpr (sizeof(S) == sizeof(R)) {
    copy_bytes(row, values, n * static_cast<int64_t>(sizeof(S)), stream);
  } else {
    for_pieces(n, [&](int64_t i, int64_t m) {
      S piece[kPiece];
      for (int64_t j = 0; j < m; ++j) piece[j] = Narrow<S, R>::from(values[i + j]);
      copy_bytes(row + i, piece, m * static_cast<int64_t>(sizeof(S)), stream);
    });
  }
}

// How rows of one element type come and go, by address: chosen once a call.
template <class R>
struct RowIo {
  int64_t bytes;  // of one element
  const R* (*load)(const void* tensor, int64_t offset, R* buffer, int64_t n);
  void (*store)(void* tensor, int64_t offset, const R* values, int64_t n, bool stream);

  void prefetch(const void* tensor, int64_t offset, int64_t n) const {
    prefetch_bytes(static_cast<const char*>(tensor) + offset * bytes, n * bytes);
  }
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
