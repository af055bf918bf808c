// Philox4x32-10 (Salmon et al., SC'11): a counter-based generator; four 32-bit words per (counter, key).
#pragma once
#include <cstdint>

#include "surrogate.h"

namespace esvae {
namespace {

struct PhiloxWords {
  uint32_t word[4];
};

ESVAE_HD PhiloxWords philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = static_cast<uint64_t>(0xD2511F53u) * c0;
    const uint64_t b = static_cast<uint64_t>(0xCD9E8D57u) * c2;
    const uint32_t n0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0;
    const uint32_t n2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(b);
    c3 = static_cast<uint32_t>(a);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// The uniform in [0, 1) of a word: its upper 24 bits, exact in fp32. The int cast vectorises better than uint32_t.
template <class R>
ESVAE_HD R uniform(uint32_t word) {
  return static_cast<R>(static_cast<int32_t>(word >> 8)) * R(0x1p-24);
}

}  // namespace
}  // namespace esvae
