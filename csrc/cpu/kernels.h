// The kernels on the CPU: each is compiled from the same sources with other flags; dispatch.cpp picks at run time.
#pragma once
#include "../calls.h"

namespace esvae {

namespace baseline {
ESVAE_KERNELS(ESVAE_DECLARE)
ESVAE_CPU_KERNELS(ESVAE_DECLARE)
}
#ifdef ESVAE_X86
namespace avx2 {
ESVAE_KERNELS(ESVAE_DECLARE)
ESVAE_CPU_KERNELS(ESVAE_DECLARE)
}
namespace avx512 {
ESVAE_KERNELS(ESVAE_DECLARE)
ESVAE_CPU_KERNELS(ESVAE_DECLARE)
}
#endif

const CpuKernels& kernels();         // the widest that this processor runs, or the one that was selected
bool select_isa(const char* name);   // false: unknown, or not on this processor
int supported_isas(const char** names, int capacity);

}  // namespace esvae
