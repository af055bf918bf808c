// What the module calls, on the CPU or a GPU: plain structs of addresses and sizes, and a table of functions. Nothing
// here allocates tensors or checks them: Python has validated every argument.
//
// A struct's fields are listed once, as X(type, name): the struct is made of the list, and so is the form in which
// Python packs it (bindings.h).
#pragma once
#include <cstdint>

namespace esvae {

enum class DType : int { f64 = 0, f32 = 1, bf16 = 2, f16 = 3, u8 = 4 };  // u8: spikes, on their way out
enum class Readout : int { none = 0, rate = 1, weights = 2 };
enum class PerChannel : int { none = 0, affine = 1, all = 2 };  // affine: gain and bias

constexpr int kChunk = 16;             // time steps between two stored potentials
constexpr int64_t kCounted = 1 << 24;  // spikes that a count in fp32 holds exactly: after so many steps it goes to fp64
constexpr int kParameters = 6;  // the rows of `parameters`, the bits of `wanted`, in this order:
constexpr const char* kParameterNames[kParameters] = {"decay", "gain", "bias", "threshold", "v_reset", "synaptic_decay"};
using Numbers = double[kParameters];
enum Wanted : int { kDecay = 1, kGain = 2, kRest = 4, kThreshold = 8, kVReset = 16, kSynapse = 32 };

#define ESVAE_FIELD(type, name) type name;
#define ESVAE_VISIT(type, name) visit(#name, name);
#define ESVAE_STRUCT(Struct, FIELDS) \
  struct Struct {                    \
    FIELDS(ESVAE_FIELD)              \
    template <class Visit>           \
    void fields(Visit&& visit) {     \
      FIELDS(ESVAE_VISIT)            \
    }                                \
  };

// Where a call runs. On a GPU it is queued and not waited for.
#define ESVAE_PLACE(X)                    \
  X(int, threads)   /* on the CPU */      \
  X(int, device)    /* or on this GPU, */ \
  X(void*, stream)  /* in this stream */
ESVAE_STRUCT(Place, ESVAE_PLACE)

// One call of the LIF, forward or backward. A row is one time step: `size` neurons; neuron i is of channel
// (i / inner) % channels. R is the state's type: double where x is f64, else float. Null is "not there", "not wanted",
// and for potentials, synaptic currents and gradients zero.
#define ESVAE_LIF(X)                                                                                                  \
  X(DType, x_dtype)                                                                                                   \
  X(DType, out_dtype)                                                                                                 \
  X(const void*, x)            /* (T, size); x_stride between rows, 0: a current constant in time */                  \
  X(int64_t, x_stride)                                                                                                \
  X(const void*, v0)           /* R (size) */                                                                         \
  X(const void*, i0)           /* R (size) */                                                                         \
  X(Numbers, numbers)          /* packed by the names of the parameters */                                            \
  X(const void*, parameters)   /* R (6, channels): what is per channel takes the number's place */                    \
  X(PerChannel, per_channel)                                                                                          \
  X(int64_t, channels)                                                                                                \
  X(int64_t, inner)                                                                                                   \
  X(const double*, weights)    /* (T) for Readout::weights */                                                         \
  X(int64_t, steps)                                                                                                   \
  X(int64_t, size)                                                                                                    \
  X(int, reset)                /* esvae::Reset */                                                                     \
  X(bool, synaptic)                                                                                                   \
  X(bool, strict)                                                                                                     \
  X(bool, several)                                                                                                    \
  X(bool, detach_reset)                                                                                               \
  X(double, v_min)             /* -infinity: none */                                                                  \
  X(int, surrogate)            /* esvae::SurrogateId */                                                               \
  X(double, shape)                                                                                                    \
  X(double, scale)                                                                                                    \
  X(double, shift)                                                                                                    \
  X(bool, smooth)                                                                                                     \
  X(Readout, readout)                                                                                                 \
  X(Place, place)                                                                                                     \
  /* forward; `saved` is read backward */                                                                             \
  X(void*, out)                /* (T, size), or (size) with a readout */                                              \
  X(void*, membrane)           /* R (T, size) */                                                                      \
  X(void*, v)                  /* R (size) */                                                                         \
  X(void*, i)                  /* R (size) */                                                                         \
  X(void*, saved)              /* R (ceil(T/kChunk)-1, size), with a synapse twice, v and then i */                   \
  /* backward */                                                                                                      \
  X(const void*, dout)                                                                                                \
  X(const void*, dmembrane)                                                                                           \
  X(const void*, dv)                                                                                                  \
  X(const void*, di)                                                                                                  \
  X(const void*, center_of_x)  /* R (channels): the gradient of the gain is that of gain * (x - center_of_x) */       \
  X(int, wanted)               /* of enum Wanted */                                                                   \
  X(void*, dx)                 /* (T, size), or (size) when x is constant; x's type */                                \
  X(void*, dv0)                /* R (size) */                                                                         \
  X(void*, di0)                /* R (size) */                                                                         \
  X(double*, dparameters)      /* (6, channels) */                                                                    \
  X(double*, dweights)         /* (T) */                                                                              \
  X(double*, workspace)        /* lif_workspace(a) numbers */
ESVAE_STRUCT(Lif, ESVAE_LIF)

// Sum, over all but the channels, of y (size elements, of channel (i / inner) % channels): mean and biased variance.
#define ESVAE_BATCH_STATISTICS(X)                                    \
  X(DType, dtype)                                                    \
  X(const void*, y)                                                  \
  X(int64_t, size)                                                   \
  X(int64_t, channels)                                               \
  X(int64_t, inner)                                                  \
  X(double*, mean)       /* (channels) */                            \
  X(double*, variance)   /* (channels) */                            \
  X(double*, workspace)  /* batch_statistics_workspace(a) numbers */ \
  X(Place, place)
ESVAE_STRUCT(BatchStatistics, ESVAE_BATCH_STATISTICS)

// dy = dx + (factor * y + offset), factor and offset per channel: what mean and variance add to the gradient of y.
#define ESVAE_BATCH_CORRECTION(X)                                \
  X(DType, dtype)                                                \
  X(const void*, dx)                                             \
  X(const void*, y)                                              \
  X(const void*, factors)  /* R (2, channels): factor, offset */ \
  X(void*, dy)                                                   \
  X(int64_t, size)                                               \
  X(int64_t, channels)                                           \
  X(int64_t, inner)                                              \
  X(Place, place)
ESVAE_STRUCT(BatchCorrection, ESVAE_BATCH_CORRECTION)

// rate (samples, elements); spikes or their gradients (T, samples, elements); ids (samples).
#define ESVAE_POISSON(X)                                              \
  X(DType, dtype)                                                     \
  X(DType, spikes_dtype)                                              \
  X(const void*, rate)                                                \
  X(const int64_t*, ids)                                              \
  X(const void*, dspikes)   /* backward only */                       \
  X(void*, out)             /* spikes, or the gradient of the rate */ \
  X(int64_t, steps)                                                   \
  X(int64_t, samples)                                                 \
  X(int64_t, elements)                                                \
  X(const uint64_t*, seed)  /* read where the kernel runs */          \
  X(int64_t, noise_stream)  /* of the seed's, at least 0 */           \
  X(int, surrogate)                                                   \
  X(double, shape)                                                    \
  X(double, scale)                                                    \
  X(double, shift)                                                    \
  X(bool, smooth)                                                     \
  X(Place, place)
ESVAE_STRUCT(Poisson, ESVAE_POISSON)

// A neuron given as its equations: a row program (cpu/program.h) takes every neuron through all time steps. On the CPU
// alone. Shapes and types are as above; the order of `tensors`, of which 0 is "not there", "not wanted", is that of
// scan.cpp.
#define ESVAE_SCAN(X)                                                               \
  X(DType, x_dtype)           /* of all inputs and their gradients */               \
  X(DType, out_dtype)         /* of all outputs and their cotangents */             \
  X(int64_t, size)                                                                  \
  X(int64_t, steps)                                                                 \
  X(Readout, readout)         /* of output 0, which is then (size) */               \
  X(const double*, weights)   /* (T) for Readout::weights */                        \
  X(const int64_t*, program)                                                        \
  X(const double*, numbers)   /* initial states, parameters, constants */           \
  X(const int64_t*, tensors)  /* their addresses */                                 \
  X(int, surrogate)           /* esvae::SurrogateId */                              \
  X(double, shape)                                                                  \
  X(double, scale)                                                                  \
  X(double, shift)                                                                  \
  X(Place, place)
ESVAE_STRUCT(Scan, ESVAE_SCAN)

#define ESVAE_KERNELS(X)                            \
  X(void, lif_forward, const Lif&)                  \
  X(void, lif_backward, const Lif&)                 \
  X(int64_t, lif_workspace, const Lif&)             \
  X(void, batch_statistics, const BatchStatistics&) \
  X(int64_t, batch_statistics_workspace, const BatchStatistics&) \
  X(void, batch_correction, const BatchCorrection&) \
  X(void, poisson_forward, const Poisson&)          \
  X(void, poisson_backward, const Poisson&)

// What only the CPU has.
#define ESVAE_CPU_KERNELS(X)           \
  X(void, scan_forward, const Scan&)   \
  X(void, scan_backward, const Scan&)

#define ESVAE_MEMBER(Result, name, Argument) Result (*name)(Argument);
struct Kernels {
  const char* name;
  ESVAE_KERNELS(ESVAE_MEMBER)
};
struct CpuKernels : Kernels {
  ESVAE_CPU_KERNELS(ESVAE_MEMBER)
};
#undef ESVAE_MEMBER

#define ESVAE_DECLARE(Result, name, Argument) Result name(Argument);
#define ESVAE_ADDRESS(Result, name, Argument) , name

}  // namespace esvae
