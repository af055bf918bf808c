// The one place where threads start and end.
#pragma once
#include <cstdint>

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#define ESVAE_NO_TSAN __attribute__((no_sanitize("thread"), noinline))
#else
#define ESVAE_NO_TSAN
#endif

namespace esvae {
namespace {

// ThreadSanitizer does not see libgomp's fork and join (the library is not built with it): tell it.
inline void happens_before(void* point) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(point);
#else
  (void)point;
#endif
}
inline void happens_after(void* point) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(point);
#else
  (void)point;
#endif
}

// body(begin, n) for every block of 0 .. size-1, in any order, by `threads` threads.
template <class Body>
ESVAE_NO_TSAN void parallel_blocks(int64_t size, int64_t block, int threads, const Body& body) {
  char fork, join;
  happens_before(&fork);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t begin = 0; begin < size; begin += block) {
    happens_after(&fork);
    body(begin, size - begin < block ? size - begin : block);
    happens_before(&join);
  }
  happens_after(&join);
}

}  // namespace
}  // namespace esvae
