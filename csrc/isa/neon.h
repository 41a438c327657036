// What the NEON files share. Include it from files compiled for the dot-product extension only.
#pragma once
#include <arm_neon.h>

#include <cstring>

#include "format.h"
#include "isa/isa.h"

namespace mote::neon {

using Codes = uint8x16_t;  // 4 rows x 4 consecutive inputs (a quad): digits 0..2, codes 0..15 or signed bytes
using Quad = int8x16_t;    // four activations, four times
using V = int32x4_t;       // sums of 4 rows

constexpr int64_t kPrefetch = 2048;  // bytes ahead of the stream of weights

static inline Codes load(const uint8_t *p) { return vld1q_u8(p); }
static inline void store(uint8_t *p, Codes v) { vst1q_u8(p, v); }
static inline Codes bytes_of(int value) { return vdupq_n_u8(static_cast<uint8_t>(value)); }
static inline Quad broadcast(const int8_t *x) {
  int32_t quad;
  std::memcpy(&quad, x, sizeof quad);
  return vreinterpretq_s8_s32(vdupq_n_s32(quad));
}
static inline V multiply_add(V acc, Codes codes, Quad x) { return vdotq_s32(acc, vreinterpretq_s8_u8(codes), x); }
static inline void prefetch_group(const uint8_t *p) {
  for (int64_t line = 0; line < kGroupBytes; line += 64) __builtin_prefetch(p + kPrefetch + line);
}

// Named accumulators a<token><quarter of 16 rows>, 24 of the 32 registers at T = 6: GCC spills an array of registers.
// FOR_TOKENS repeats a statement for tokens 0..5; those from T on compile to nothing.
#define FOR_TOKENS(M) M(0) M(1) M(2) M(3) M(4) M(5)
#define ZERO(t)                                                                    \
  V a##t##0 = vdupq_n_s32(0), a##t##1 = a##t##0, a##t##2 = a##t##0, a##t##3 = a##t##0; \
  const int8_t *x##t = x + (t < T ? t : 0) * x_stride;
#define MULTIPLY(t)                              \
  if constexpr (t < T) {                         \
    const Quad quad = broadcast(x##t + 4 * k);   \
    a##t##0 = multiply_add(a##t##0, w0, quad);   \
    a##t##1 = multiply_add(a##t##1, w1, quad);   \
    a##t##2 = multiply_add(a##t##2, w2, quad);   \
    a##t##3 = multiply_add(a##t##3, w3, quad);   \
  }
#define KEEP(t)                                                                                       \
  if constexpr (t < T) {                                                                              \
    acc[4 * t] = a##t##0, acc[4 * t + 1] = a##t##1, acc[4 * t + 2] = a##t##2, acc[4 * t + 3] = a##t##3; \
  } else {                                                                                            \
    (void)a##t##1, (void)a##t##2, (void)a##t##3, (void)x##t;                                          \
  }

constexpr int64_t kTokens = 6;  // multiplied with a tile at once

// acc[4 t + i] = sums of rows 4 i .. 4 i + 3 of 16 rows for T tokens. tile: [quad][64 rows][4], at the first row.
template <int T>
static inline void multiply_rows(const uint8_t *tile, int64_t quads, const int8_t *x, int64_t x_stride, V *acc) {
  FOR_TOKENS(ZERO)
  for (int64_t k = 0; k < quads; ++k, tile += kGroupBytes) {
    const Codes w0 = load(tile), w1 = load(tile + 16), w2 = load(tile + 32), w3 = load(tile + 48);
    FOR_TOKENS(MULTIPLY)
  }
  FOR_TOKENS(KEEP)
}
#undef FOR_TOKENS
#undef ZERO
#undef MULTIPLY
#undef KEEP

void dot_scaled(const ScaledStrip &w, const GroupedInput &x, int64_t tokens, float *y_TR);
}  // namespace mote::neon
