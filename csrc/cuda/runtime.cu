// The table of kernels, and whether they can run here at all.
#include <cuda_runtime.h>

#include "kernels.h"

namespace esvae {
namespace cuda {
namespace {

constexpr int kOldest = 8;  // major compute capability that the kernels are compiled for

std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }

std::string probe() {
  int driver = 0, runtime = 0, devices = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  if (driver == 0) return "there is no NVIDIA driver";
  const cudaError_t error = cudaGetDeviceCount(&devices);
  cudaGetLastError();  // an error is kept until it is read
  if (error == cudaErrorInsufficientDriver)
    return "the NVIDIA driver supports CUDA " + version(driver) + ", the kernels were built with CUDA " +
           version(runtime) + ": update the driver, or build with an older nvcc";
  if (error != cudaSuccess) return cudaGetErrorString(error);
  for (int device = 0; device < devices; ++device) {
    int major = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (major >= kOldest) return "";
  }
  return devices ? "every GPU here is older than compute capability 8.0" : "there is no NVIDIA GPU";
}

}  // namespace

std::string why_not() {
  static const std::string found = probe();
  return found;
}

const Kernels& kernels() {
  static const Kernels table{"cuda" ESVAE_KERNELS(ESVAE_ADDRESS)};
  return table;
}

}  // namespace cuda
}  // namespace esvae
