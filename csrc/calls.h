// What the module calls, on the CPU or a GPU: plain structs of addresses and sizes, and a table of functions. Nothing
// here allocates tensors or checks them: Python has validated every argument.
#pragma once
#include <cstdint>

namespace esvae {

enum class DType : int { f64 = 0, f32 = 1, bf16 = 2, f16 = 3, u8 = 4 };  // u8: spikes, on their way out
enum class Readout : int { none = 0, rate = 1, weights = 2 };
enum class PerChannel : int { none = 0, affine = 1, all = 2 };  // affine: gain and rest

constexpr int kChunk = 16;     // time steps between two stored potentials
constexpr int kParameters = 6;  // the rows of `parameters`, the bits of `wanted`, in this order:
enum Wanted : int { kDecay = 1, kGain = 2, kRest = 4, kThreshold = 8, kVReset = 16, kSynapse = 32 };

// Where a call runs. On a GPU it is queued and not waited for.
struct Place {
  int threads;   // on the CPU
  int device;    // or on this GPU,
  void* stream;  // in this stream
};

// One call of the LIF, forward or backward. A row is one time step: `size` neurons; neuron i is of channel
// (i / inner) % channels. R is the state's type: double where x is f64, else float. Null is "not there", "not wanted",
// and for potentials, synaptic currents and gradients zero.
struct Lif {
  DType x_dtype, out_dtype;
  const void* x;           // (T, size); x_stride between rows, 0: a current constant in time
  int64_t x_stride;
  const void* v0;          // R (size)
  const void* i0;          // R (size)
  double numbers[kParameters];
  const void* parameters;  // R (6, channels): what is per channel takes the number's place
  PerChannel per_channel;
  int64_t channels, inner;
  const double* weights;  // (T) for Readout::weights
  int64_t steps, size;
  int reset;  // esvae::Reset
  bool synaptic, strict, several, detach_reset;
  double v_min;  // -infinity: none
  int surrogate;  // esvae::SurrogateId
  double shape, scale, center;
  bool smooth;
  Readout readout;
  Place place;
  // forward
  void* out;       // (T, size), or (size) with a readout
  void* membrane;  // R (T, size)
  void* v;         // R (size)
  void* i;         // R (size)
  void* saved;     // R (ceil(T/kChunk)-1, size), with a synapse twice, v and then i: written forward, read backward
  // backward
  const void* dout;
  const void* dmembrane;
  const void* dv;
  const void* di;
  const void* center_of_x;  // R (channels): the gradient of the gain is that of gain * (x - center_of_x)
  int wanted;               // of enum Wanted
  void* dx;                 // (T, size), or (size) when x is constant; x's type
  void* dv0;                // R (size)
  void* di0;                // R (size)
  double* dparameters;      // (6, channels)
  double* dweights;         // (T)
  double* workspace;        // lif_workspace(a) numbers
};

// Sum, over all but the channels, of y (size elements, of channel (i / inner) % channels): mean and biased variance.
struct BatchStatistics {
  DType dtype;
  const void* y;
  int64_t size, channels, inner;
  double* mean;       // (channels)
  double* variance;   // (channels)
  double* workspace;  // batch_statistics_workspace(a) numbers
  Place place;
};

// dy = dx + (factor * y + offset), factor and offset per channel: what mean and variance add to the gradient of y.
struct BatchCorrection {
  DType dtype;
  const void* dx;
  const void* y;
  const void* factors;  // R (2, channels): factor, offset
  void* dy;
  int64_t size, channels, inner;
  Place place;
};

// rate (samples, elements); spikes or their gradients (T, samples, elements); ids (samples).
struct Poisson {
  DType dtype, spikes_dtype;
  const void* rate;
  const int64_t* ids;
  const void* dspikes;  // backward only
  void* out;            // spikes, or the gradient of the rate
  int64_t steps, samples, elements;
  const uint64_t* seed;  // read where the kernel runs
  uint64_t noise_stream;  // of the seed's
  int surrogate;
  double shape, scale, center;
  bool smooth;
  Place place;
};

#define ESVAE_KERNELS(X)                            \
  X(void, lif_forward, const Lif&)                  \
  X(void, lif_backward, const Lif&)                 \
  X(int64_t, lif_workspace, const Lif&)             \
  X(void, batch_statistics, const BatchStatistics&) \
  X(int64_t, batch_statistics_workspace, const BatchStatistics&) \
  X(void, batch_correction, const BatchCorrection&) \
  X(void, poisson_forward, const Poisson&)          \
  X(void, poisson_backward, const Poisson&)

struct Kernels {
  const char* name;
#define ESVAE_MEMBER(Result, name, Argument) Result (*name)(Argument);
  ESVAE_KERNELS(ESVAE_MEMBER)
#undef ESVAE_MEMBER
};

#define ESVAE_DECLARE(Result, name, Argument) Result name(Argument);
#define ESVAE_ADDRESS(Result, name, Argument) , name

}  // namespace esvae
