// Run-time choice of the vector width.
#include <atomic>
#include <cstring>

#include "kernels.h"

namespace esvae {
namespace {

#define ESVAE_TABLE(isa)                                                                      \
  [] {                                                                                        \
    using namespace isa;                                                                      \
    return CpuKernels{{#isa ESVAE_KERNELS(ESVAE_ADDRESS)} ESVAE_CPU_KERNELS(ESVAE_ADDRESS)}; \
  }()

struct Entry {
  CpuKernels table;
  bool supported;
};

const Entry* entries(int& count) {
  static const Entry list[] = {
#ifdef ESVAE_X86
      {ESVAE_TABLE(avx512), __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")},
      {ESVAE_TABLE(avx2), static_cast<bool>(__builtin_cpu_supports("avx2"))},
#endif
      {ESVAE_TABLE(baseline), true},
  };
  count = sizeof list / sizeof *list;
  return list;
}

std::atomic<const CpuKernels*> selected{nullptr};

}  // namespace

const CpuKernels& kernels() {
  if (const CpuKernels* table = selected.load(std::memory_order_acquire)) return *table;
  int count;
  const Entry* list = entries(count);
  for (int i = 0; i < count; ++i)
    if (list[i].supported) {
      selected.store(&list[i].table, std::memory_order_release);
      break;
    }
  return *selected.load(std::memory_order_acquire);
}

bool select_isa(const char* name) {
  int count;
  const Entry* list = entries(count);
  for (int i = 0; i < count; ++i)
    if (list[i].supported && std::strcmp(list[i].table.name, name) == 0) {
      selected.store(&list[i].table, std::memory_order_release);
      return true;
    }
  return false;
}

int supported_isas(const char** names, int capacity) {
  int count, found = 0;
  const Entry* list = entries(count);
  for (int i = 0; i < count && found < capacity; ++i)
    if (list[i].supported) names[found++] = list[i].table.name;
  return found;
}

}  // namespace esvae
