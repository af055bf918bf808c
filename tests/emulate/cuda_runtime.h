// A GPU of threads on the CPU, as far as csrc/cuda needs one: with this in place of CUDA's header of the same name the
// kernels compile as C++ and run on host memory, so that tests can compare them with the reference. The threads of a
// block are fibers that run one after the other from barrier to barrier: forwards in even blocks, backwards in odd ones,
// so that a barrier which is missing shows. It models neither warps nor the memory.
#pragma once
#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

constexpr std::size_t kStack = 256 * 1024;

// A fiber is started once and serves the same thread of all blocks to come. Unlike swapcontext the compiler's own setjmp
// takes no system call, and AddressSanitizer lets it be.
#define EMULATOR_SWITCH __attribute__((noinline, no_sanitize("address")))
using Place = void*[5];

struct Fiber {
  ucontext_t start;
  Place here;
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool started = false, done = false;
};

inline std::vector<std::unique_ptr<Fiber>> fibers;
inline Place scheduler;
inline std::function<void()> body;
inline std::size_t running;

EMULATOR_SWITCH inline void jump(Place& place) { __builtin_longjmp(place, 1); }

EMULATOR_SWITCH inline void pause() {
  if (__builtin_setjmp(fibers[running]->here) == 0) jump(scheduler);
}

inline void enter() {
  for (;;) {
    body();
    fibers[running]->done = true;
    pause();
  }
}

EMULATOR_SWITCH inline void resume(Fiber& fiber) {
  if (__builtin_setjmp(scheduler) != 0) return;
  if (fiber.started) jump(fiber.here);
  fiber.started = true;
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack.get();
  fiber.start.uc_stack.ss_size = kStack;
  makecontext(&fiber.start, enter, 0);
  setcontext(&fiber.start);
}

// Takes every thread to its next barrier, or to its end; false when all have ended.
inline bool advance(std::size_t threads, bool backwards) {
  std::size_t ended = 0;
  for (std::size_t i = 0; i < threads; ++i) {
    running = backwards ? threads - 1 - i : i;
    threadIdx = dim3(static_cast<unsigned>(running), 0, 0);
    if (!fibers[running]->done) resume(*fibers[running]);
    ended += fibers[running]->done;
  }
  if (ended != 0 && ended != threads) throw std::runtime_error("a barrier that not all threads reach");
  return ended == 0;
}

inline void run_block(std::size_t threads, bool backwards) {
  while (fibers.size() < threads) fibers.emplace_back(new Fiber);
  for (std::size_t i = 0; i < threads; ++i) fibers[i]->done = false;
  while (advance(threads, backwards)) {
  }
}

}  // namespace emulator

inline void __syncthreads() { emulator::pause(); }

// ------------------------------------------------------------------------------------------- what the host side calls

enum cudaError_t { cudaSuccess, cudaErrorInsufficientDriver };
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor };
using cudaStream_t = void*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
};

inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaDriverGetVersion(int* version) { return *version = 13000, cudaSuccess; }
inline cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 13000, cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) { return *value = 9, cudaSuccess; }

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  using namespace emulator;
  gridDim = config->gridDim;
  blockDim = config->blockDim;
  body = [&] { kernel(arguments...); };
  for (unsigned block = 0; block < gridDim.x; ++block) {
    blockIdx = dim3(block, 0, 0);
    run_block(blockDim.x, block % 2 == 1);
  }
  return cudaSuccess;
}
