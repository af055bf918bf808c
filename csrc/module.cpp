// The pybind11 module `_esvae_kernels`: addresses, sizes and options in, nothing out. It knows no tensor type, so one
// binary serves every torch version. The GIL is released for the length of a kernel.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "math/philox.h"

namespace py = pybind11;
using namespace esvae;

namespace {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

std::vector<std::string> isas() {
  const char* names[8];
  const int count = supported_isas(names, 8);
  return {names, names + count};
}

void set_isa(const std::string& name) {
  if (!select_isa(name.c_str())) {
    std::string known;
    for (const std::string& n : isas()) known += (known.empty() ? "" : ", ") + n;
    throw py::value_error("isa: got '" + name + "', this processor runs " + known);
  }
}

}  // namespace

PYBIND11_MODULE(_esvae_kernels, m) {
  m.doc() = "Compiled kernels of esvae_kernels; call them through that package, which validates.";
  m.attr("__version__") = ESVAE_VERSION;
  m.def("isa", [] { return kernels().name; }, "The vector width in use.");
  m.def("isas", &isas, "The vector widths that this processor runs, widest first.");
  m.def("set_isa", &set_isa, py::arg("name"), "Use one of isas() from now on, in the whole process.");

  using namespace py::literals;
  py::class_<LifOptions>(m, "LifOptions")
      .def(py::init([](double decay, double gain, double rest, double threshold, double v_reset, int reset, bool strict,
                       bool detach_reset, int surrogate, double shape, double center, bool smooth, int readout) {
             return LifOptions{decay,     gain,  rest,   threshold, v_reset, reset, strict, detach_reset,
                               surrogate, shape, center, smooth,    readout};
           }),
           py::kw_only(), "decay"_a, "gain"_a, "rest"_a, "threshold"_a, "v_reset"_a, "reset"_a, "strict"_a,
           "detach_reset"_a, "surrogate"_a, "shape"_a, "center"_a, "smooth"_a, "readout"_a);

  m.def(
      "lif_forward",
      [](int dtype, uintptr_t x, int64_t x_stride, uintptr_t v0, uintptr_t weights, uintptr_t out, uintptr_t v,
         uintptr_t saved, int64_t steps, int64_t size, const LifOptions& options, int threads) {
        const LifForward a{static_cast<DType>(dtype), pointer<void>(x), x_stride, pointer<void>(v0),
                           pointer<double>(weights),  pointer<void>(out), pointer<void>(v), pointer<void>(saved),
                           steps, size, options, threads};
        py::gil_scoped_release release;
        kernels().lif_forward(a);
      },
      py::kw_only(), "dtype"_a, "x"_a, "x_stride"_a, "v0"_a, "weights"_a, "out"_a, "v"_a, "saved"_a, "steps"_a,
      "size"_a, "options"_a, "threads"_a);
  m.def(
      "lif_backward",
      [](int dtype, uintptr_t x, int64_t x_stride, uintptr_t v0, uintptr_t saved, uintptr_t weights, uintptr_t dout,
         uintptr_t dv, uintptr_t dx, uintptr_t dv0, int64_t steps, int64_t size, const LifOptions& options,
         int threads) {
        const LifBackward a{static_cast<DType>(dtype), pointer<void>(x), x_stride, pointer<void>(v0),
                            pointer<void>(saved), pointer<double>(weights), pointer<void>(dout), pointer<void>(dv),
                            pointer<void>(dx), pointer<void>(dv0), steps, size, options, threads};
        py::gil_scoped_release release;
        kernels().lif_backward(a);
      },
      py::kw_only(), "dtype"_a, "x"_a, "x_stride"_a, "v0"_a, "saved"_a, "weights"_a, "dout"_a, "dv"_a, "dx"_a,
      "dv0"_a, "steps"_a, "size"_a, "options"_a, "threads"_a);

  const auto poisson = [](bool forward) {
    return [forward](int dtype, uintptr_t rate, uintptr_t ids, uintptr_t dspikes, uintptr_t out, int64_t steps,
                     int64_t samples, int64_t elements, uint64_t seed, int surrogate, double shape, double center,
                     bool smooth, int threads) {
      const Poisson a{static_cast<DType>(dtype), pointer<void>(rate), pointer<int64_t>(ids), pointer<void>(dspikes),
                      pointer<void>(out), steps, samples, elements, seed, surrogate, shape, center, smooth, threads};
      py::gil_scoped_release release;
      (forward ? kernels().poisson_forward : kernels().poisson_backward)(a);
    };
  };
  for (const bool forward : {true, false})
    m.def(forward ? "poisson_forward" : "poisson_backward", poisson(forward), py::kw_only(), "dtype"_a, "rate"_a,
          "ids"_a, "dspikes"_a, "out"_a, "steps"_a, "samples"_a, "elements"_a, "seed"_a, "surrogate"_a, "shape"_a,
          "center"_a, "smooth"_a, "threads"_a);
  m.def(
      "philox",
      [](std::vector<uint32_t> counter, std::vector<uint32_t> key) {
        if (counter.size() != 4 || key.size() != 2) throw py::value_error("philox: 4 counter words and 2 key words");
        const auto w = philox<uint64_t>(counter[0], counter[1], counter[2], counter[3], key[0], key[1]);
        std::vector<uint32_t> words;
        for (const uint64_t lane : w.word) words.push_back(static_cast<uint32_t>(lane));
        return words;
      },
      "counter"_a, "key"_a, "The four words of Philox4x32-10 (for the known-answer test).");
}
