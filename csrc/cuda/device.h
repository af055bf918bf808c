// What the CUDA kernels share: launches, 16-byte accesses to tensors of any type, and sums by channel.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "../calls.h"
#include "../math/convert.h"

namespace esvae {
namespace {

// The type of state and arithmetic for a tensor of S.
template <class S>
using State = std::conditional_t<std::is_same_v<S, double>, double, float>;

// Elements that one thread takes next to each other: 16 bytes, or one where addresses or sizes do not allow that.
template <class S>
constexpr int kVector = 16 / sizeof(S);

// With 64 threads of 8 elements the potentials of a chunk fit where those of 128 threads of 4 do.
template <class S>
constexpr int kThreads = sizeof(S) == 2 ? 64 : 128;

// --------------------------------------------------------------------------------------------------------- launching

inline void check(const char* op, cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(op) + ": " + cudaGetErrorString(error));
}

template <class... Parameters, class... Arguments>
void launch(const char* op, const Place& place, void (*kernel)(Parameters...), int64_t blocks, int threads,
            const Arguments&... arguments) {
  if (blocks == 0) return;
  check(op, cudaSetDevice(place.device));  // of this module's own runtime
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = static_cast<cudaStream_t>(place.stream);
  cudaLaunchKernelEx(&config, kernel, arguments...);
  check(op, cudaGetLastError());
}

inline int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Calls f with a zero of the element type.
template <class F>
void with_element(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f64: return f(double{});
    case DType::bf16: return f(bf16{});
    case DType::f16: return f(f16{});
    default: return f(float{});
  }
}

// Calls f with the number of elements that a thread takes: for a tensor whose elements are taken in runs of `run`.
template <class S, class F>
void with_vector(int64_t run, std::initializer_list<const void*> tensors, F&& f) {
  uintptr_t addresses = 0;
  for (const void* tensor : tensors) addresses |= reinterpret_cast<uintptr_t>(tensor);
  if (addresses % 16 == 0 && run % kVector<S> == 0)
    f(std::integral_constant<int, kVector<S>>{});
  else
    f(std::integral_constant<int, 1>{});
}

// ------------------------------------------------------------------------------------------------ loading and storing

template <class S, int V>
struct alignas(V * sizeof(S) < 16 ? V * sizeof(S) : 16) Vector {
  S lane[V];
};

template <class S, int V>
ESVAE_DEVICE Vector<S, V> load(const void* tensor, int64_t at) {
  return *reinterpret_cast<const Vector<S, V>*>(static_cast<const S*>(tensor) + at);
}

template <class R, int V>
ESVAE_DEVICE void load_state(const void* tensor, int64_t at, R (&to)[V]) {  // zeros where there is none
  Vector<R, V> from{};
  if (tensor) from = load<R, V>(tensor, at);
#pragma unroll
  for (int j = 0; j < V; ++j) to[j] = from.lane[j];
}

template <class R, int V>
ESVAE_DEVICE void load_any(DType dtype, const void* tensor, int64_t at, R (&to)[V]) {
  const auto widened = [&](const auto& from) {
#pragma unroll
    for (int j = 0; j < V; ++j) to[j] = static_cast<R>(widen(from.lane[j]));
  };
  switch (dtype) {
    case DType::f64: return widened(load<double, V>(tensor, at));
    case DType::bf16: return widened(load<bf16, V>(tensor, at));
    case DType::f16: return widened(load<f16, V>(tensor, at));
    default: return widened(load<float, V>(tensor, at));
  }
}

template <class R, int V>
ESVAE_DEVICE void store_state(void* tensor, int64_t at, const R (&from)[V]) {
  if (!tensor) return;
  Vector<R, V> to;
  for (int j = 0; j < V; ++j) to.lane[j] = from[j];
  *reinterpret_cast<Vector<R, V>*>(static_cast<R*>(tensor) + at) = to;
}

template <class S, class R, int V>
ESVAE_DEVICE void store(void* tensor, int64_t at, const R (&from)[V]) {
  Vector<S, V> to;
  for (int j = 0; j < V; ++j) to.lane[j] = Narrow<S, R>::from(from[j]);
  *reinterpret_cast<Vector<S, V>*>(static_cast<S*>(tensor) + at) = to;
}

template <class R, int V>
ESVAE_DEVICE void store(DType dtype, void* tensor, int64_t at, const R (&from)[V]) {
  switch (dtype) {
    case DType::f64: return store<double>(tensor, at, from);
    case DType::f32: return store<float>(tensor, at, from);
    case DType::bf16: return store<bf16>(tensor, at, from);
    case DType::f16: return store<f16>(tensor, at, from);
    case DType::u8: return store<uint8_t>(tensor, at, from);
  }
}

// The rows of a group of time steps, the first `count` of them, loaded together.
template <class S, int V, int group>
ESVAE_DEVICE void load_group(const void* tensor, int64_t at, int64_t stride, int count, Vector<S, V> (&rows)[group]) {
#pragma unroll
  for (int k = 0; k < group; ++k)
    if (k < count) rows[k] = load<S, V>(tensor, at + k * stride);
}

// Row k of a group, for a k that is known at run time only, so that a loop over a group is compiled once: registers have
// no addresses, hence a choice, word by word.
template <class S, int V, int group>
ESVAE_DEVICE void pick(const Vector<S, V> (&rows)[group], int k, State<S> (&to)[V]) {
  using Word = std::conditional_t<sizeof(S) * V < 4, uint16_t, uint32_t>;
  constexpr int words = sizeof(S) * V / sizeof(Word);
  Word picked[words];
#pragma unroll
  for (int i = 0; i < group; ++i) {
    Word row[words];
    memcpy(row, &rows[i], sizeof row);
#pragma unroll
    for (int w = 0; w < words; ++w) picked[w] = i == 0 || k == i ? row[w] : picked[w];
  }
  Vector<S, V> row;
  memcpy(&row, picked, sizeof row);
#pragma unroll
  for (int j = 0; j < V; ++j) to[j] = widen(row.lane[j]);
}

template <class S>
constexpr DType kDType = std::is_same_v<S, double>  ? DType::f64
                         : std::is_same_v<S, float> ? DType::f32
                         : std::is_same_v<S, bf16>  ? DType::bf16
                                                    : DType::f16;

// Where an element is in runs of `inner`: its place within the run, and the run's number modulo `count`.
struct Run {
  int64_t inner, count, within, number;

  ESVAE_DEVICE Run(int64_t at, int64_t inner, int64_t count)
      : inner(inner), count(count), within(at % inner), number(at / inner % count) {}
  ESVAE_DEVICE void next() {
    if (++within < inner) return;
    within = 0;
    if (++number == count) number = 0;
  }
};

// --------------------------------------------------------------------------------------------------- sums by channel

// How threads are laid over `size` elements, element i of channel (i / inner) % channels, so that the elements of a block
// have few channels: the elements are `repeats` rows of one after the other channel, and such a row is cut into groups of
// `width` vectors, each of one channel, or for inner = 1 of one channel per element. A block takes consecutive vectors of
// one group, its rows one after the other.
struct Blocks {
  int64_t repeats, row, width, groups, parts;
  int kept;     // channels of a group
  int threads;  // of a block

  // V elements a vector, `vectors` of them a thread. Without channels all is one group.
  static Blocks of(int64_t size, int64_t channels, int64_t inner, int V, int threads, int64_t vectors = 1) {
    Blocks b{};
    const bool last = inner == 1 && channels > 1;
    b.row = last ? channels / V : channels * inner / V;
    b.repeats = size / V / b.row;
    b.width = inner / V;
    if (last)
      for (b.width = 1; b.width < 8 && b.width < b.row;) b.width *= 2;  // 128 bytes: a power of two, as sums want it
    b.groups = divided_up(b.row, b.width);
    b.parts = divided_up(b.repeats * b.width, threads * vectors);
    b.kept = last ? static_cast<int>(b.width) * V : 1;
    b.threads = threads;
    return b;
  }
  static Blocks flat(int64_t size, int V, int threads) {
    return {1, size / V, size / V, 1, divided_up(size / V, threads), 1, threads};
  }

  int64_t count() const { return groups * parts; }
  int64_t sums(int number) const { return count() * number * kept; }  // in a workspace

  ESVAE_DEVICE int64_t group() const { return blockIdx.x / parts; }
  // Vector number `i` of the group, as an index among all of them; -1 where there is none.
  ESVAE_DEVICE int64_t vector(int64_t i) const {
    const int64_t in_row = group() * width + i % width;
    return i < repeats * width && in_row < row ? i / width * row + in_row : -1;
  }
};

// The length of the runs that have to be whole vectors for `Blocks::of`.
inline int64_t run_of(int64_t channels, int64_t inner) { return inner == 1 ? channels : inner; }

constexpr int kFinishThreads = 256;

// The first stage of the sums by channel: adds up what the threads of a block have put into values[..][thread], in a
// fixed order; `numbers` values a thread, one per sum, or one per sum and element where a group has a channel for each.
template <int threads>
ESVAE_DEVICE void add_up(double (*values)[threads], int numbers, const Blocks& b, double* workspace) {
  const int thread = threadIdx.x, last = b.kept == 1 ? 1 : static_cast<int>(b.width);
  for (int half = threads / 2; half >= last; half /= 2) {
    __syncthreads();
    if (thread < half)
      for (int k = 0; k < numbers; ++k) values[k][thread] += values[k][thread + half];
  }
  if (thread >= last) return;
  double* const part = workspace + static_cast<int64_t>(blockIdx.x) * numbers * last;
  const int lanes = b.kept / last;
  for (int k = 0; k < numbers; ++k) part[(k / lanes) * b.kept + thread * lanes + k % lanes] = values[k][thread];
}

// The second stage: a block per channel adds up the parts in their order, and then(channel, sums) does the rest.
template <int sums, class Then>
__global__ void __launch_bounds__(kFinishThreads, 1)
    finish(const double* workspace, int64_t parts, int number, int kept, Then then) {
  __shared__ double total[sums][kFinishThreads];
  const int thread = threadIdx.x;
  const int64_t channel = blockIdx.x;
  const double* const first = workspace + channel / kept * parts * number * kept + channel % kept;
  for (int sum = 0; sum < number; ++sum) {
    double own = 0;
    for (int64_t part = thread; part < parts; part += kFinishThreads) own += first[(part * number + sum) * kept];
    total[sum][thread] = own;
  }
  for (int half = kFinishThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half)
      for (int sum = 0; sum < number; ++sum) total[sum][thread] += total[sum][thread + half];
  }
  if (thread == 0) then(channel, total);
}

}  // namespace
}  // namespace esvae
