// Philox4x32-10 (Salmon et al., SC'11): a counter-based generator; four 32-bit words per (counter, key).
#pragma once
#include <cstdint>

#include "macros.h"

namespace esvae {
namespace {

// The 64-bit product of a constant and a lane's low 32 bits. A vector type brings its own overload.
ESVAE_HD uint64_t wide_product(uint32_t constant, uint64_t lane) {
  return static_cast<uint64_t>(constant) * static_cast<uint32_t>(lane);
}

constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;

// The key of a stream: the seed itself in stream 0, in stream k the k-th number that SplitMix64 gives from it.
ESVAE_HD uint64_t stream_key(uint64_t seed, uint64_t stream) {
  if (stream == 0) return seed;
  uint64_t z = seed + stream * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

// The key of each round, wide enough to be combined with a lane.
struct PhiloxKeys {
  uint64_t k0[10], k1[10];
  ESVAE_HD explicit PhiloxKeys(uint64_t key) {
    ESVAE_UNROLL(10)
    for (uint32_t round = 0; round < 10; ++round) {
      k0[round] = static_cast<uint32_t>(key) + 0x9E3779B9u * round;
      k1[round] = static_cast<uint32_t>(key >> 32) + 0xBB67AE85u * round;
    }
  }
};

// A lane is 64 bits wide, or a vector of such; a word is its low half, and the upper half is left to hold anything:
// only the low half enters a product, and no instruction is spent on clearing the other.
template <class Lane>
struct PhiloxState {
  Lane c0, c1, c2, c3;

  ESVAE_HD void round(const PhiloxKeys& keys, int number) {
    const Lane a = wide_product(kPhiloxM0, c0);
    const Lane b = wide_product(kPhiloxM1, c2);
    c0 = (b >> 32) ^ c1 ^ keys.k0[number];
    c2 = (a >> 32) ^ c3 ^ keys.k1[number];
    c1 = b;
    c3 = a;
  }
};

// The first three rounds, without what depends on counter 1: the sampler keeps the time there, and an element draws
// for many times. Of their six products four are here, two are left for `at`.
template <class Lane>
struct PhiloxStart {
  Lane c0, c1, c3, k2, k3;

  ESVAE_HD void set(Lane counter0, Lane counter2, Lane counter3, const PhiloxKeys& keys) {
    PhiloxState<Lane> s{counter0, Lane{}, counter2, counter3};
    s.round(keys, 0);
    c0 = s.c0;  // but for ^ counter 1
    k2 = s.c3 ^ keys.k1[1];
    const Lane b = wide_product(kPhiloxM1, s.c2);
    const Lane a = wide_product(kPhiloxM0, (b >> 32) ^ s.c1 ^ keys.k0[1]);
    c1 = b ^ keys.k0[2];
    k3 = (a >> 32) ^ keys.k1[2];
    c3 = a;
  }

  // The state after nine rounds.
  ESVAE_HD PhiloxState<Lane> at(Lane counter1, const PhiloxKeys& keys) const {
    const Lane a = wide_product(kPhiloxM0, c0 ^ counter1);
    const Lane b = wide_product(kPhiloxM1, (a >> 32) ^ k2);
    PhiloxState<Lane> s{(b >> 32) ^ c1, b, a ^ k3, c3};
    ESVAE_UNROLL(6)
    for (int number = 3; number < 9; ++number) s.round(keys, number);
    return s;
  }
};

// The uniform in [0, 1) of a word: its upper 24 bits, exact in fp32. The int cast vectorises better than uint32_t.
template <class R>
ESVAE_HD R uniform(uint32_t word) {
  return static_cast<R>(static_cast<int32_t>(word >> 8)) * R(0x1p-24);
}

}  // namespace
}  // namespace esvae
