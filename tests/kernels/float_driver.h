// What the parts of float_driver share.
#pragma once
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "isa/isa.h"
#include "mote.h"

namespace driver {

using mote::FloatKernels;
using Floats = std::vector<float>;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN(), kInf = std::numeric_limits<float>::infinity();

inline int passed = 0;
inline std::mt19937 rng(11);

struct Named {
  const char *name;
  const FloatKernels *kernels;
};

inline std::vector<Named> usable() {
  std::vector<Named> all = {{"scalar", &mote::kScalarFloats}};
#if defined(MOTE_X86)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) all.push_back({"avx2", &mote::kAvx2Floats});
#if defined(MOTE_EMULATE_AVX512)
  all.push_back({"avx512", &mote::kAvx512Floats});
#else
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    all.push_back({"avx512", &mote::kAvx512Floats});
#endif
#endif
#if defined(MOTE_ARM)
  all.push_back({"neon", &mote::kNeonFloats});
#endif
  return all;
}

inline void check(bool good, const std::string &what) {
  if (!good) {
    std::printf("FAILED: %s\n", what.c_str());
    std::exit(1);
  }
  ++passed;
}

inline std::string at(const char *kernel, const char *isa, std::initializer_list<int64_t> sizes) {
  std::string text = std::string(kernel) + " on " + isa;
  for (int64_t size : sizes) text += " " + std::to_string(size);
  return text;
}

inline Floats numbers(int64_t n, float scale = 1.0f) {
  std::normal_distribution<float> normal(0.0f, scale);
  Floats x(static_cast<size_t>(n));
  for (float &v : x) v = normal(rng);
  return x;
}

inline bool same_bits(const Floats &a, const Floats &b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

// |a - exact| <= tolerance * (|exact| + floor), and never NaN.
inline bool close(float a, double exact, double tolerance, double floor) {
  return std::fabs(a - exact) <= tolerance * (std::fabs(exact) + floor);
}

inline float from_bf16(uint16_t b) {
  const uint32_t bits = uint32_t{b} << 16;
  float a;
  std::memcpy(&a, &bits, sizeof a);
  return a;
}

// The nearest bf16 of a finite number, by trying its two neighbours.
inline float nearest_bf16(float a) {
  uint32_t bits;
  std::memcpy(&bits, &a, sizeof bits);
  const auto low = static_cast<uint16_t>(bits >> 16), high = static_cast<uint16_t>(low + 1);
  const double below = std::fabs(double{a} - from_bf16(low)), above = std::fabs(from_bf16(high) - double{a});
  return from_bf16(below < above || (below == above && low % 2 == 0) ? low : high);
}

// float_driver_attend.cpp
void attention(const std::vector<Named> &isas);
}  // namespace driver
