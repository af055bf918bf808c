// What the module calls: plain structs of addresses and sizes, one table of functions per vector width.
// Nothing here allocates tensors or checks them: Python has validated every argument.
#pragma once
#include <cstdint>

namespace esvae {

enum class DType : int { f64 = 0, f32 = 1, bf16 = 2, f16 = 3 };
enum class Readout : int { none = 0, rate = 1, weights = 2 };

struct LifOptions {
  double decay, gain, rest, threshold, v_reset;
  int reset;  // esvae::Reset
  bool strict, detach_reset;
  int surrogate;  // esvae::SurrogateId
  double shape, center;
  bool smooth;
  int readout;  // esvae::Readout
};

// x (T, N) with a stride in time (0: a current constant in time); v0, v (N) and saved (ceil(T/16)-1, N) in the state's
// type (double for f64, else float). Null: v0 is zero; v, saved are not wanted.
struct LifForward {
  DType dtype;
  const void* x;
  int64_t x_stride;
  const void* v0;
  const double* weights;  // (T) for Readout::weights
  void* out;              // (T, N), or (N) with a readout; x's type
  void* v;
  void* saved;
  int64_t steps, size;
  LifOptions options;
  int threads;
};

// dout as out above; dv may be null (zero); dv0 may be null (not wanted). dx is (T, N), or (N) when x is constant.
struct LifBackward {
  DType dtype;
  const void* x;
  int64_t x_stride;
  const void* v0;
  const void* saved;
  const double* weights;
  const void* dout;
  const void* dv;
  void* dx;
  void* dv0;
  int64_t steps, size;
  LifOptions options;
  int threads;
};

// rate (samples, elements); spikes or their gradients (T, samples, elements); ids (samples).
struct Poisson {
  DType dtype;
  const void* rate;
  const int64_t* ids;
  const void* dspikes;  // backward only
  void* out;            // spikes, or the gradient of the rate
  int64_t steps, samples, elements;
  uint64_t seed;
  int surrogate;
  double shape, center;
  bool smooth;
  int threads;
};

struct Kernels {
  const char* name;
  void (*lif_forward)(const LifForward&);
  void (*lif_backward)(const LifBackward&);
  void (*poisson_forward)(const Poisson&);
  void (*poisson_backward)(const Poisson&);
};

// Each of these is compiled from the same sources with other flags; dispatch.cpp picks at run time.
#define ESVAE_DECLARE(ISA)                     \
  namespace ISA {                              \
  void lif_forward(const LifForward&);         \
  void lif_backward(const LifBackward&);       \
  void poisson_forward(const Poisson&);        \
  void poisson_backward(const Poisson&);       \
  }
ESVAE_DECLARE(baseline)
#ifdef ESVAE_X86
ESVAE_DECLARE(avx2)
ESVAE_DECLARE(avx512)
#endif
#undef ESVAE_DECLARE

const Kernels& kernels();            // the widest that this processor runs, or the one that was selected
bool select_isa(const char* name);   // false: unknown, or not on this processor
int supported_isas(const char** names, int capacity);

}  // namespace esvae
