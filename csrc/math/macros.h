// What lets the same arithmetic compile for the CPU and, by nvcc, for GPUs.
#pragma once

#ifdef __CUDACC__
#define ESVAE_HD __host__ __device__ __forceinline__
#define ESVAE_DEVICE __device__ __forceinline__
#else
#define ESVAE_HD inline __attribute__((always_inline))
#define ESVAE_DEVICE ESVAE_HD
#endif

// What a loop works on stays in registers only if the loop is unrolled.
#define ESVAE_PRAGMA(text) _Pragma(#text)
#ifdef __CUDACC__
#define ESVAE_UNROLL(times) ESVAE_PRAGMA(unroll times)
#else
#define ESVAE_UNROLL(times) ESVAE_PRAGMA(GCC unroll times)
#endif
