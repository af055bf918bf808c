// Philox4x32-10 (Salmon et al., SC'11): a counter-based generator; four 32-bit words per (counter, key).
#pragma once
#include <cstdint>

#include "surrogate.h"

namespace esvae {
namespace {

// The 64-bit product of a constant and a lane's low 32 bits. A vector type brings its own overload.
ESVAE_HD uint64_t wide_product(uint32_t constant, uint64_t lane) {
  return static_cast<uint64_t>(constant) * static_cast<uint32_t>(lane);
}

template <class Lane>
struct PhiloxWords {
  Lane word[4];
};

// A lane is 64 bits wide, or a vector of such; a word is its low half, and the upper half is left to hold anything:
// only the low half enters a product, and no instruction is spent on clearing the other.
template <class Lane>
ESVAE_HD PhiloxWords<Lane> philox(Lane c0, Lane c1, Lane c2, Lane c3, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const Lane a = wide_product(0xD2511F53u, c0);
    const Lane b = wide_product(0xCD9E8D57u, c2);
    c0 = (b >> 32) ^ c1 ^ static_cast<uint64_t>(k0);
    c2 = (a >> 32) ^ c3 ^ static_cast<uint64_t>(k1);
    c1 = b;
    c3 = a;
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
