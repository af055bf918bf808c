// Moving a row of a tensor into the state's type and back: conversions, and stores that leave the cache alone.
// Internal linkage throughout: every vector width has its own copy.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "../math/convert.h"
#include "kernels.h"

#define ESVAE_RESTRICT __restrict__

namespace esvae {
namespace {

// What a spike is in each type: its one. Spikes are stored by a comparison, which is cheaper than the conversion.
template <class S>
constexpr S one() {
  return S(1);
}
template <>
constexpr bf16 one<bf16>() {
  return {0x3f80u};
}
template <>
constexpr f16 one<f16>() {
  return {0x3c00u};
}

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
#elif defined(__AVX2__)
constexpr int64_t kVector = 32;
#elif defined(__SSE2__)
constexpr int64_t kVector = 16;
#endif
#if defined(__SSE2__)
inline void stream_vector(char* dst, const char* src) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  memcpy(dst, src, kVector);  // sanitizers do not see the stores below
#elif defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(dst), _mm512_loadu_si512(src));
#elif defined(__AVX2__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(dst), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(src)));
#else
  _mm_stream_si128(reinterpret_cast<__m128i*>(dst), _mm_loadu_si128(reinterpret_cast<const __m128i*>(src)));
#endif
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

// Bytes of state of the neurons that a thread takes through time at once: a few such rows fit into L1.
constexpr int64_t kBlockBytes = 8192;
template <class R>
constexpr int64_t kBlock = kBlockBytes / static_cast<int64_t>(sizeof(R));

// The block for `size` neurons: whole vectors, and several blocks also where there are few neurons. It depends on the
// size alone, so that sums over blocks do not depend on the number of threads.
template <class R>
inline int64_t block_size(int64_t size) {
  const int64_t share = (size / 16 + 63) / 64 * 64;
  return share < 64 ? 64 : (share < kBlock<R> ? share : kBlock<R>);
}

// `pick(i)` for i in 0 .. n-1, stored as S; by way of a piece in cache where the store is to bypass it.
template <class S, class F>
inline void store_each(S* ESVAE_RESTRICT row, int64_t n, bool stream, F&& pick) {
  if (!stream) {
    for (int64_t i = 0; i < n; ++i) row[i] = pick(i);
    return;
  }
  for_pieces(n, [&](int64_t begin, int64_t m) {
    alignas(64) S piece[kPiece];
    for (int64_t i = 0; i < m; ++i) piece[i] = pick(begin + i);
    copy_bytes(row + begin, piece, m * static_cast<int64_t>(sizeof(S)), true);
  });
}

template <class S, class R>
inline void store_row(S* row, const R* ESVAE_RESTRICT values, int64_t n, bool stream) {
  if constexpr (std::is_same_v<S, R>)
    copy_bytes(row, values, n * static_cast<int64_t>(sizeof(S)), stream);
  else
    store_each(row, n, stream, [=](int64_t i) { return Narrow<S, R>::from(values[i]); });
}

// The same for values that are 0 or 1.
template <class S, class R>
inline void store_spikes(S* row, const R* ESVAE_RESTRICT values, int64_t n, bool stream) {
  if constexpr (std::is_same_v<S, R>)
    copy_bytes(row, values, n * static_cast<int64_t>(sizeof(S)), stream);
  else
    store_each(row, n, stream, [=](int64_t i) { return values[i] != R(0) ? one<S>() : S{}; });
}

// How rows of one element type come and go, by address: chosen once a call.
template <class R>
struct RowIo {
  using Store = void (*)(void* tensor, int64_t offset, const R* values, int64_t n, bool stream);
  int64_t bytes;  // of one element
  const R* (*load)(const void* tensor, int64_t offset, R* buffer, int64_t n);
  Store store, store_spikes;

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
          },
          [](void* tensor, int64_t offset, const R* values, int64_t n, bool stream) {
            store_spikes(static_cast<S*>(tensor) + offset, values, n, stream);
          }};
}

template <class R>
RowIo<R> row_io(DType dtype) {
  switch (dtype) {
    case DType::f64: return row_io<double, R>();
    case DType::f32: return row_io<float, R>();
    case DType::bf16: return row_io<bf16, R>();
    case DType::f16: return row_io<f16, R>();
    case DType::u8: return row_io<uint8_t, R>();
  }
  return {};
}

// Calls f with a zero of the state's type: double for fp64 inputs, else float.
template <class F>
void with_state(DType dtype, F&& f) {
  dtype == DType::f64 ? f(double(0)) : f(float(0));
}

}  // namespace
}  // namespace esvae
