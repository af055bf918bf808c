// The Python functions of a table of kernels: addresses, sizes and options in, nothing out. They know no tensor type, so
// one binary serves every torch version. The GIL is released for the length of a call.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>

#include "calls.h"

namespace esvae {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Defines in `m` what calls the functions of `kernels()`.
inline void define_kernels(pybind11::module_& m, const Kernels& (*kernels)()) {
  namespace py = pybind11;
  using namespace py::literals;
  // One signature for forward, backward and the workspace's size; an address of 0 is "not there".
  const auto lif = [](auto run) {
    return [run](int x_dtype, int out_dtype, uintptr_t x, int64_t x_stride, uintptr_t v0, uintptr_t i0,
                 std::array<double, kParameters> numbers, uintptr_t parameters, int per_channel, int64_t channels,
                 int64_t inner, uintptr_t weights, int64_t steps, int64_t size, bool synaptic, double v_min, int reset,
                 bool strict, bool several, bool detach_reset, int surrogate, double shape, double scale, double center,
                 bool smooth, int readout, uintptr_t out, uintptr_t membrane, uintptr_t v, uintptr_t i, uintptr_t saved,
                 uintptr_t dout, uintptr_t dmembrane, uintptr_t dv, uintptr_t di, uintptr_t center_of_x, int wanted,
                 uintptr_t dx, uintptr_t dv0, uintptr_t di0, uintptr_t dparameters, uintptr_t dweights,
                 uintptr_t workspace, int threads, int device, uintptr_t stream) {
      Lif a{};
      a.x_dtype = static_cast<DType>(x_dtype), a.out_dtype = static_cast<DType>(out_dtype);
      a.x = pointer<void>(x), a.x_stride = x_stride, a.v0 = pointer<void>(v0), a.i0 = pointer<void>(i0);
      std::copy(numbers.begin(), numbers.end(), a.numbers);
      a.parameters = pointer<void>(parameters), a.per_channel = static_cast<PerChannel>(per_channel);
      a.channels = channels, a.inner = inner, a.weights = pointer<double>(weights);
      a.steps = steps, a.size = size, a.synaptic = synaptic, a.v_min = v_min, a.reset = reset;
      a.strict = strict, a.several = several, a.detach_reset = detach_reset;
      a.surrogate = surrogate, a.shape = shape, a.scale = scale, a.center = center, a.smooth = smooth;
      a.readout = static_cast<Readout>(readout), a.place = {threads, device, pointer<void>(stream)};
      a.out = pointer<void>(out), a.membrane = pointer<void>(membrane), a.v = pointer<void>(v), a.i = pointer<void>(i);
      a.saved = pointer<void>(saved), a.dout = pointer<void>(dout), a.dmembrane = pointer<void>(dmembrane);
      a.dv = pointer<void>(dv), a.di = pointer<void>(di), a.center_of_x = pointer<void>(center_of_x);
      a.wanted = wanted, a.dx = pointer<void>(dx);
      a.dv0 = pointer<void>(dv0), a.di0 = pointer<void>(di0), a.dparameters = pointer<double>(dparameters);
      a.dweights = pointer<double>(dweights), a.workspace = pointer<double>(workspace);
      py::gil_scoped_release release;
      return run(a);
    };
  };
  const auto define_lif = [&](const char* name, auto run) {
    m.def(name, lif(run), py::kw_only(), "x_dtype"_a, "out_dtype"_a, "x"_a, "x_stride"_a, "v0"_a, "i0"_a, "numbers"_a,
          "parameters"_a, "per_channel"_a, "channels"_a, "inner"_a, "weights"_a, "steps"_a, "size"_a, "synaptic"_a,
          "v_min"_a, "reset"_a, "strict"_a, "several"_a, "detach_reset"_a, "surrogate"_a, "shape"_a, "scale"_a,
          "center"_a, "smooth"_a, "readout"_a, "out"_a = 0, "membrane"_a = 0, "v"_a = 0, "i"_a = 0, "saved"_a = 0,
          "dout"_a = 0, "dmembrane"_a = 0, "dv"_a = 0, "di"_a = 0, "center_of_x"_a = 0, "wanted"_a = 0, "dx"_a = 0,
          "dv0"_a = 0, "di0"_a = 0, "dparameters"_a = 0, "dweights"_a = 0, "workspace"_a = 0, "threads"_a = 1,
          "device"_a = 0, "stream"_a = 0);
  };
  define_lif("lif_forward", [kernels](const Lif& a) { kernels().lif_forward(a); });
  define_lif("lif_backward", [kernels](const Lif& a) { kernels().lif_backward(a); });
  define_lif("lif_workspace", [kernels](const Lif& a) { return kernels().lif_workspace(a); });

  const auto define_statistics = [&](const char* name, auto run) {
    m.def(
        name,
        [run](int dtype, uintptr_t y, int64_t size, int64_t channels, int64_t inner, uintptr_t mean, uintptr_t variance,
              uintptr_t workspace, int threads, int device, uintptr_t stream) {
          const BatchStatistics a{static_cast<DType>(dtype), pointer<void>(y), size, channels, inner,
                                  pointer<double>(mean), pointer<double>(variance), pointer<double>(workspace),
                                  {threads, device, pointer<void>(stream)}};
          py::gil_scoped_release release;
          return run(a);
        },
        py::kw_only(), "dtype"_a, "y"_a, "size"_a, "channels"_a, "inner"_a, "mean"_a, "variance"_a, "workspace"_a = 0,
        "threads"_a = 1, "device"_a = 0, "stream"_a = 0);
  };
  define_statistics("batch_statistics", [kernels](const BatchStatistics& a) { kernels().batch_statistics(a); });
  define_statistics("batch_statistics_workspace",
                    [kernels](const BatchStatistics& a) { return kernels().batch_statistics_workspace(a); });

  m.def(
      "batch_correction",
      [kernels](int dtype, uintptr_t dx, uintptr_t y, uintptr_t factors, uintptr_t dy, int64_t size, int64_t channels,
         int64_t inner, int threads, int device, uintptr_t stream) {
        const BatchCorrection a{static_cast<DType>(dtype), pointer<void>(dx), pointer<void>(y), pointer<void>(factors),
                                pointer<void>(dy),         size,              channels,         inner,
                                {threads, device, pointer<void>(stream)}};
        py::gil_scoped_release release;
        kernels().batch_correction(a);
      },
      py::kw_only(), "dtype"_a, "dx"_a, "y"_a, "factors"_a, "dy"_a, "size"_a, "channels"_a, "inner"_a,
      "threads"_a = 1, "device"_a = 0, "stream"_a = 0);

  const auto poisson = [kernels](bool forward) {
    return [kernels, forward](int dtype, int spikes_dtype, uintptr_t rate, uintptr_t ids, uintptr_t dspikes, uintptr_t out, int64_t steps,
                     int64_t samples, int64_t elements, uintptr_t seed, uint64_t noise_stream, int surrogate, double shape, double scale,
                     double center, bool smooth, int threads, int device, uintptr_t stream) {
      const Poisson a{static_cast<DType>(dtype), static_cast<DType>(spikes_dtype), pointer<void>(rate), pointer<int64_t>(ids), pointer<void>(dspikes),
                      pointer<void>(out), steps, samples, elements, pointer<uint64_t>(seed), noise_stream, surrogate, shape, scale, center, smooth,
                      {threads, device, pointer<void>(stream)}};
      py::gil_scoped_release release;
      (forward ? kernels().poisson_forward : kernels().poisson_backward)(a);
    };
  };
  for (const bool forward : {true, false})
    m.def(forward ? "poisson_forward" : "poisson_backward", poisson(forward), py::kw_only(), "dtype"_a, "spikes_dtype"_a, "rate"_a,
          "ids"_a, "dspikes"_a, "out"_a, "steps"_a, "samples"_a, "elements"_a, "seed"_a, "noise_stream"_a, "surrogate"_a, "shape"_a,
          "scale"_a, "center"_a, "smooth"_a, "threads"_a = 1, "device"_a = 0, "stream"_a = 0);
}

}  // namespace esvae
