// Float lanes without SIMD: arrays and std::fma. The C++ specification of the others.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace mote {
namespace {

struct ScalarLanes {
  static constexpr int kWidth = 16;   // lanes of one V
  static constexpr int kTile = 2;     // rows (tokens, queries) of a register tile
  struct V {
    float at[kWidth];
  };

  template <class F>
  static V each(F f) {
    V v;
    for (int i = 0; i < kWidth; ++i) v.at[i] = f(i);
    return v;
  }
  static uint32_t bits(float a) {
    uint32_t b;
    std::memcpy(&b, &a, sizeof b);
    return b;
  }
  static float from_bits(uint32_t b) {
    float a;
    std::memcpy(&a, &b, sizeof a);
    return a;
  }

  static V load(const void *p) {
    V v;
    std::memcpy(v.at, p, sizeof v.at);
    return v;
  }
  static V load_bf16(const void *p) {
    uint16_t b[kWidth];
    std::memcpy(b, p, sizeof b);
    return each([&](int i) { return from_bits(uint32_t{b[i]} << 16); });
  }
  static void store(float *p, V v) { std::memcpy(p, v.at, sizeof v.at); }
  static void store_i8(int8_t *p, V v) {  // integers in -128..127
    for (int i = 0; i < kWidth; ++i) p[i] = static_cast<int8_t>(v.at[i]);
  }
  static V broadcast(float a) {
    return each([&](int) { return a; });
  }
  static V add(V a, V b) {
    return each([&](int i) { return a.at[i] + b.at[i]; });
  }
  static V sub(V a, V b) {
    return each([&](int i) { return a.at[i] - b.at[i]; });
  }
  static V mul(V a, V b) {
    return each([&](int i) { return a.at[i] * b.at[i]; });
  }
  static V div(V a, V b) {
    return each([&](int i) { return a.at[i] / b.at[i]; });
  }
  static V fma(V a, V b, V c) {
    return each([&](int i) { return std::fma(a.at[i], b.at[i], c.at[i]); });
  }
  // The second operand where either is NaN.
  static V max(V a, V b) {
    return each([&](int i) { return a.at[i] > b.at[i] ? a.at[i] : b.at[i]; });
  }
  static V min(V a, V b) {
    return each([&](int i) { return a.at[i] < b.at[i] ? a.at[i] : b.at[i]; });
  }
  static V abs(V a) {
    return each([&](int i) { return from_bits(bits(a.at[i]) & 0x7fffffff); });
  }
  // The larger bit pattern of two numbers without sign: orders as the numbers do, NaN above Inf.
  static V max_bits(V a, V b) {
    return each([&](int i) { return bits(a.at[i]) > bits(b.at[i]) ? a.at[i] : b.at[i]; });
  }
  // a where the sign bit of `sign` is set, else b.
  static V select(V sign, V a, V b) {
    return each([&](int i) { return bits(sign.at[i]) >> 31 ? a.at[i] : b.at[i]; });
  }
  // 2^n of z = n + kRound (float_rows.h), whose low bits hold the integer n, -126 <= n <= 127.
  static V pow2(V z) {
    return each([&](int i) { return from_bits((bits(z.at[i]) << 23) + 0x3f800000u); });
  }
  // The sum of 16 lanes: lane j += lane j + h for h = 8, 4, 2, 1.
  static float sum(const V *v) {
    V s = v[0];
    for (int h = 8; h > 0; h /= 2)
      for (int j = 0; j < h; ++j) s.at[j] += s.at[j + h];
    return s.at[0];
  }
};
}  // namespace
}  // namespace mote
