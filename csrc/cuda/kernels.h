// The kernels on NVIDIA GPUs. A function queues its work in the stream that it is given and returns; it allocates nothing
// and waits for nothing. It throws std::runtime_error where the queueing fails.
#pragma once
#include <string>

#include "../calls.h"

namespace esvae {
namespace cuda {

ESVAE_KERNELS(ESVAE_DECLARE)

const Kernels& kernels();
std::string why_not();  // why no kernel can run in this process; empty if they can

}  // namespace cuda
}  // namespace esvae
