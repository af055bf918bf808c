// The functions of `_esvae_kernels.cuda` on the emulator, as a module of their own.
#include "../../csrc/bindings.h"
#include "../../csrc/cuda/kernels.h"

PYBIND11_MODULE(emulated_cuda, m) {
  esvae::define_kernels(m, &esvae::cuda::kernels);
  m.attr("emulated") = true;
  m.def("why_not", &esvae::cuda::why_not);
}
