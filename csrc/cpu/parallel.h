// The one place where threads start and end, what each of them computes with, and where.
#pragma once
#include <cstdint>
#include <memory>
#include <new>

#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__SSE2__)
#include <immintrin.h>
#endif

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

inline int thread_number() {
#if defined(_OPENMP)
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// How a thread computes: whether subnormal numbers count as zero (`torch.set_flush_denormal`, which holds for the thread
// that calls it alone), how results are rounded. Zero where we know no such register.
inline uint64_t arithmetic() {
#if defined(__SSE2__)
  return _mm_getcsr();
#elif defined(__aarch64__)
  uint64_t mode;
  asm volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
#else
  return 0;
#endif
}
inline void set_arithmetic(uint64_t mode) {
#if defined(__SSE2__)
  _mm_setcsr(static_cast<unsigned>(mode));
#elif defined(__aarch64__)
  asm volatile("msr fpcr, %0" : : "r"(mode));
#else
  (void)mode;
#endif
}

// A thread computes like another one as long as this lives.
class Arithmetic {
 public:
  explicit Arithmetic(uint64_t mode) : before_(arithmetic()) { set_arithmetic(mode); }
  ~Arithmetic() { set_arithmetic(before_); }
  Arithmetic(const Arithmetic&) = delete;
  Arithmetic& operator=(const Arithmetic&) = delete;

 private:
  uint64_t before_;
};

// Memory of one thread, handed out in rows that start with a cache line. Without memory it only adds up their sizes.
// A thread's stack may be as small as 256 KiB, and the rows of a block are 570 KiB.
class Rows {
 public:
  static constexpr int64_t kLine = 64;

  explicit Rows(char* memory = nullptr) : memory_(memory) {}

  // One of n values; null if it is not `wanted`.
  template <class R>
  R* take(int64_t n, bool wanted = true) {
    if (!wanted) return nullptr;
    char* const row = memory_ ? memory_ + bytes_ : nullptr;
    bytes_ += (n * static_cast<int64_t>(sizeof(R)) + kLine - 1) / kLine * kLine;
    return reinterpret_cast<R*>(row);
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* memory_;
  int64_t bytes_ = 0;
};

// Element i of a row that may not be there.
template <class R>
R* element(R* row, int64_t i) {
  return row ? row + i : nullptr;
}

struct FreeRows {
  void operator()(char* memory) const { ::operator delete(memory, std::align_val_t{Rows::kLine}); }
};

// body(rows, begin, n) for every block of 0 .. size-1, in any order, by `threads` threads. `rows` is what make(Rows&)
// gives, once for each thread.
template <class Make, class Body>
ESVAE_NO_TSAN void parallel_blocks(int64_t size, int64_t block, int threads, const Make& make, const Body& body) {
  Rows sizes;
  make(sizes);
  const std::unique_ptr<char, FreeRows> memory(
      static_cast<char*>(::operator new(sizes.bytes() * threads, std::align_val_t{Rows::kLine})));
  const uint64_t mode = arithmetic();
  char fork, join;
  happens_before(&fork);
#pragma omp parallel num_threads(threads)
  {
    happens_after(&fork);
    const Arithmetic same(mode);
    Rows own(memory.get() + sizes.bytes() * thread_number());
    auto rows = make(own);
#pragma omp for schedule(static) nowait
    for (int64_t begin = 0; begin < size; begin += block)
      body(rows, begin, size - begin < block ? size - begin : block);
    happens_before(&join);
  }
  happens_after(&join);
}

// body(begin, n), where a block needs no more than the stack.
template <class Body>
void parallel_blocks(int64_t size, int64_t block, int threads, const Body& body) {
  struct Nothing {};
  parallel_blocks(
      size, block, threads, [](Rows&) { return Nothing{}; },
      [&](Nothing&, int64_t begin, int64_t n) { body(begin, n); });
}

}  // namespace
}  // namespace esvae
