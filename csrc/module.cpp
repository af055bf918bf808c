// The pybind11 module `_esvae_kernels`.
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bindings.h"
#include "cpu/kernels.h"
#include "cpu/program.h"
#ifdef ESVAE_CUDA
#include "cuda/kernels.h"
#endif
#include "math/philox.h"

namespace py = pybind11;
using namespace esvae;

namespace {

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

// Without Python's global lock: the one thing that calls share is the choice of the vector width, which is atomic.
PYBIND11_MODULE(_esvae_kernels, m, py::mod_gil_not_used()) {
  m.doc() = "Compiled kernels of esvae_kernels; call them through that package, which validates.";
  m.attr("__version__") = ESVAE_VERSION;
  m.def("isa", [] { return kernels().name; }, "The vector width in use.");
  m.def("isas", &isas, "The vector widths that this processor runs, widest first.");
  m.def("set_isa", &set_isa, py::arg("name"), "Use one of isas() from now on, in the whole process.");

  define_kernels(m, &kernels);
  py::dict ops;
  for (const OpTraits& op : kOps) ops[op.name] = static_cast<int64_t>(op.code);
  m.attr("scan_ops") = ops;
  m.attr("why_one_thread") = ESVAE_WHY_ONE_THREAD;
  m.attr("why_no_cuda") = ESVAE_WHY_NO_CUDA;
#ifdef ESVAE_CUDA
  py::module_ on_gpu = m.def_submodule("cuda", "The same functions on NVIDIA GPUs; addresses are of that GPU's memory.");
  define_kernels(on_gpu, &cuda::kernels);
  on_gpu.attr("emulated") = false;
  on_gpu.def("why_not", &cuda::why_not, "Why no kernel can run in this process; empty if they can.");
#endif
  using namespace py::literals;
  m.def("stream_key", [](uint64_t seed, uint64_t stream) { return stream_key(seed, stream); }, "seed"_a, "stream"_a,
        "The key of a stream of the sampler's noise (for the known-answer test).");
  m.def(
      "philox",
      [](std::vector<uint32_t> counter, std::vector<uint32_t> key) {
        if (counter.size() != 4 || key.size() != 2) throw py::value_error("philox: 4 counter words and 2 key words");
        const PhiloxKeys keys(key[0] | static_cast<uint64_t>(key[1]) << 32);
        PhiloxStart<uint64_t> start;
        start.set(counter[0], counter[2], counter[3], keys);
        PhiloxState<uint64_t> s = start.at(counter[1], keys);
        s.round(keys, 9);
        return std::vector<uint32_t>{static_cast<uint32_t>(s.c0), static_cast<uint32_t>(s.c1),
                                     static_cast<uint32_t>(s.c2), static_cast<uint32_t>(s.c3)};
      },
      "counter"_a, "key"_a, "The four words of Philox4x32-10 (for the known-answer test).");
}
