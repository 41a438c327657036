// Kernels on 256-bit vpdpbusd, which multiplies digits or codes (unsigned) with activations (signed) and adds quads into
// int32, so that nothing needs widening as in avx2.cpp. The files that include this one differ in the instruction's
// encoding: they define VNNI256, their namespace, and DPBUSD, the intrinsic.
//
// A register holds 8 rows x 4 consecutive inputs. One token (GEMV) is decoded in registers straight from the stream of
// weights; more tokens share a tile unpacked once into L1. Legend: quad = 4 consecutive inputs; a tile is
// [quad][64 rows][4] digits or codes, 256 bytes a quad. Packed int8 is a tile as it lies.
#include <algorithm>

#include "format.h"
#include "isa/avx2.h"
#include "isa/codes.h"
#include "isa/digits_avx2.h"
#include "isa/scale_group.h"

namespace mote::VNNI256 {
namespace {

using namespace avx2;

constexpr int64_t kTileQuads = 100;   // of digits: 25 KiB
constexpr int64_t kTileInputs = 256;  // of int4, unless a single scale group has more
constexpr int64_t kTokens = 6;        // multiplied with a tile at once

inline V add_quads(V acc, V digits, V x) { return DPBUSD(acc, digits, x); }
// Keeps a value in its register: GCC otherwise moves running sums about, and to the stack and back, in inner loops.
inline void pin(V &v) { asm("" : "+x"(v)); }

// Named accumulators a<token><half>, 12 of the 16 registers at T = 6: GCC spills an array of registers. FOR_TOKENS
// repeats a statement for tokens 0..5; those from T on compile to nothing.
#define FOR_TOKENS(M) M(0) M(1) M(2) M(3) M(4) M(5)
#define START(t)                                     \
  const int8_t *x##t = x + (t < T ? t : 0) * x_stride; \
  V a##t##0 = _mm256_set1_epi32(t < T ? start[t] : 0), a##t##1 = a##t##0;
#define MULTIPLY(t)                         \
  if constexpr (t < T) {                    \
    const V quad = broadcast(x##t + 4 * k); \
    a##t##0 = DPBUSD(a##t##0, w0, quad);    \
    a##t##1 = DPBUSD(a##t##1, w1, quad);    \
    pin(a##t##0), pin(a##t##1);             \
  }
#define GIVE(t)                               \
  if constexpr (t < T) {                      \
    give(t, a##t##0, a##t##1);                \
  } else {                                    \
    (void)a##t##0, (void)a##t##1, (void)x##t; \
  }

// give(t, rows 0..7, rows 8..15) with start[t] + tile . x for T tokens; tile: at the first of 16 rows.
template <int T, class Give>
inline void multiply_rows(const uint8_t *tile, int64_t quads, const int8_t *x, int64_t x_stride, const int32_t *start,
                          Give give) {
  FOR_TOKENS(START)
  for (int64_t k = 0; k < quads; ++k, tile += kGroupBytes) {
    const V w0 = load(tile), w1 = load(tile + 32);
    FOR_TOKENS(MULTIPLY)
  }
  FOR_TOKENS(GIVE)
}
#undef FOR_TOKENS
#undef START
#undef MULTIPLY
#undef GIVE

// acc_TR += tile . x for T tokens and 64 rows.
template <int T>
void multiply_digits(const uint8_t *tile, int64_t quads, const int8_t *x, int64_t x_stride, int32_t *acc_TR) {
  constexpr int32_t start[kTokens] = {};
  for (int64_t r = 0; r < kStripRows; r += 16)
    multiply_rows<T>(tile + 4 * r, quads, x, x_stride, start, [&](int64_t t, V low, V high) {
      int32_t *acc = acc_TR + t * kStripRows + r;
      store(acc, _mm256_add_epi32(load(acc), low));
      store(acc + 8, _mm256_add_epi32(load(acc + 8), high));
    });
}

using MultiplyDigits = void (*)(const uint8_t *, int64_t, const int8_t *, int64_t, int32_t *);
constexpr MultiplyDigits kMultiplyDigits[kTokens + 1] = {nullptr,
                                                         multiply_digits<1>,
                                                         multiply_digits<2>,
                                                         multiply_digits<3>,
                                                         multiply_digits<4>,
                                                         multiply_digits<5>,
                                                         multiply_digits<6>};

template <int32_t F>
void many_tokens(const uint8_t *strip, int64_t groups, const int8_t *x, int64_t x_stride, int64_t tokens,
                 int32_t *acc_TR) {
  alignas(32) uint8_t tile[kTileQuads * kGroupBytes];
  constexpr int64_t kGroups = kTileQuads / kQuadsOf<F>;
  for (int64_t g = 0; g < groups; g += kGroups) {
    const int64_t count = std::min(kGroups, groups - g);
    unpack_digits<F>(strip + g * kGroupBytes, count, tile);
    const int8_t *at = x + g * kQuadsOf<F> * 4;
    for (int64_t t = 0; t < tokens; t += kTokens) {
      const MultiplyDigits multiply = kMultiplyDigits[std::min(kTokens, tokens - t)];
      multiply(tile, count * kQuadsOf<F>, at + t * x_stride, x_stride, acc_TR + t * kStripRows);
    }
  }
}

// GEMV, straight from the packed bytes. Accumulators b0..b7 hold rows 8i..8i+7; FOR_ROWS repeats for i = 0..7.
#define FOR_ROWS(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7)
#define ZERO(i) V b##i = _mm256_setzero_si256();
#define MULTIPLY(i) b##i = multiply_group<F, add_quads>(b##i, load(strip + 32 * i), x0, x1, x2, x3, x4);
#define KEEP(i) store(acc_R + 8 * i, b##i);
template <int32_t F>
void one_token(const uint8_t *strip, int64_t groups, const int8_t *x, int32_t *acc_R) {
  FOR_ROWS(ZERO)
  for (int64_t g = 0; g < groups; ++g, strip += kGroupBytes, x += 4 * kQuadsOf<F>) {
    prefetch_page_ahead(strip);
    const V x0 = broadcast(x), x1 = broadcast(x + 4), x2 = broadcast(x + 8), x3 = broadcast(x + 12);
    const V x4 = F == MOTE_BASE3 ? broadcast(x + 16) : x0;
    FOR_ROWS(MULTIPLY)
  }
  FOR_ROWS(KEEP)
}
#undef ZERO
#undef MULTIPLY
#undef KEEP

template <int32_t F>
void dot_as(const uint8_t *strip, int64_t groups, const int8_t *x, int64_t x_stride, int64_t tokens, int32_t *acc_TR) {
  if (tokens == 1) {
    one_token<F>(strip, groups, x, acc_TR);
  } else {
    std::fill_n(acc_TR, tokens * kStripRows, 0);
    many_tokens<F>(strip, groups, x, x_stride, tokens, acc_TR);
  }
}

void dot(int32_t format, const uint8_t *strip, int64_t groups, const int8_t *x, int64_t x_stride, int64_t tokens,
         int32_t *acc_TR) {
  if (format == MOTE_2BIT) {
    dot_as<MOTE_2BIT>(strip, groups, x, x_stride, tokens, acc_TR);
  } else {
    dot_as<MOTE_BASE3>(strip, groups, x, x_stride, tokens, acc_TR);
  }
}

// Integers with scales per group. Sums start where the codes' offset times the sum of x is taken away already.
constexpr int32_t offset(int32_t format) { return format == MOTE_INT4 ? -8 : -128; }

// y += float(acc) * (scale * s), for 8 rows.
inline void add_group(float *y, V acc, __m256 scale, __m256 s) {
  const __m256 value = _mm256_cvtepi32_ps(acc);
  _mm256_storeu_ps(y, _mm256_add_ps(_mm256_loadu_ps(y), _mm256_mul_ps(value, _mm256_mul_ps(scale, s))));
}

#define START(i) V b##i = correction;
#define MULTIPLY4(i)                                                                       \
  {                                                                                        \
    const V v = load(data + 32 * i);                                                       \
    b##i = DPBUSD(b##i, _mm256_and_si256(v, _mm256_set1_epi8(15)), x0);                    \
    b##i = DPBUSD(b##i, _mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi8(15)), x1); \
  }
#define MULTIPLY8(i) b##i = DPBUSD(b##i, load(data + 32 * i), x0);
#define FINISH(i) add_group(y_R + 8 * i, b##i, scales(w.scale_GR + g * kStripRows + 8 * i), s);
template <bool kInt4>
void one_token_scaled(const ScaledStrip &w, const GroupedInput &input, float *y_R) {
  const uint8_t *data = w.data;
  for (int64_t g = 0; g < w.scale_groups; ++g) {
    const ScaleGroup group = scale_group(w, g);
    const int8_t *x = input.x + group.k0;
    const V correction = _mm256_set1_epi32(offset(w.format) * input.sum_TG[g]);
    FOR_ROWS(START)
    for (int64_t k = 0; k < group.quads; k += kInt4 ? 2 : 1, data += kGroupBytes) {
      prefetch_page_ahead(data);
      const V x0 = broadcast(x + 4 * k);
      if constexpr (kInt4) {
        const V x1 = broadcast(x + 4 * k + 4);
        FOR_ROWS(MULTIPLY4)
      } else {
        FOR_ROWS(MULTIPLY8)
      }
    }
    const __m256 s = _mm256_set1_ps(input.s_TG[g]);
    FOR_ROWS(FINISH)
  }
}
#undef FOR_ROWS
#undef START
#undef MULTIPLY4
#undef MULTIPLY8
#undef FINISH

void unpack_int4(const uint8_t *data, int64_t groups, uint8_t *tile) {
  const V low = _mm256_set1_epi8(15);
  for (int64_t g = 0; g < groups; ++g, data += kGroupBytes, tile += 2 * kGroupBytes)
    for (int64_t r = 0; r < kGroupBytes; r += 32) {
      const V v = load(data + r);
      store(tile + r, _mm256_and_si256(v, low));
      store(tile + kGroupBytes + r, _mm256_and_si256(_mm256_srli_epi16(v, 4), low));
    }
}

// y_TR += scale group g of 64 rows, its codes at tile, for T tokens; x, y_TR: at the first of them.
template <int T>
void multiply_scaled(const ScaledStrip &w, int64_t g, const uint8_t *tile, const GroupedInput &x, float *y_TR) {
  const ScaleGroup group = scale_group(w, g);
  int32_t start[kTokens] = {};
  for (int64_t t = 0; t < T; ++t) start[t] = offset(w.format) * x.sum_TG[t * w.scale_groups + g];
  for (int64_t r = 0; r < kStripRows; r += 16) {
    const uint16_t *scale = w.scale_GR + g * kStripRows + r;
    const __m256 scale0 = scales(scale), scale1 = scales(scale + 8);
    multiply_rows<T>(tile + 4 * r, group.quads, x.x + group.k0, x.stride, start, [&](int64_t t, V low, V high) {
      const __m256 s = _mm256_set1_ps(x.s_TG[t * w.scale_groups + g]);
      float *y = y_TR + t * kStripRows + r;
      add_group(y, low, scale0, s);
      add_group(y + 8, high, scale1, s);
    });
  }
}

using MultiplyScaled = void (*)(const ScaledStrip &, int64_t, const uint8_t *, const GroupedInput &, float *);
constexpr MultiplyScaled kMultiplyScaled[kTokens + 1] = {nullptr,
                                                         multiply_scaled<1>,
                                                         multiply_scaled<2>,
                                                         multiply_scaled<3>,
                                                         multiply_scaled<4>,
                                                         multiply_scaled<5>,
                                                         multiply_scaled<6>};

void many_tokens_scaled(const ScaledStrip &w, const GroupedInput &x, int64_t tokens, float *y_TR) {
  alignas(32) uint8_t unpacked[kMaxScaledGroup / 4 * kGroupBytes];
  const bool int4 = w.format == MOTE_INT4;
  const int64_t groups = std::max<int64_t>(1, kTileInputs / w.group);
  const uint8_t *data = w.data;
  for (int64_t first = 0; first < w.scale_groups; first += groups) {
    const int64_t count = std::min(groups, w.scale_groups - first);
    const int64_t quads = (count - 1) * w.group / 4 + scale_group(w, first + count - 1).quads;
    const int64_t kgroups = int4 ? (quads + 1) / 2 : quads;
    if (int4) unpack_int4(data, kgroups, unpacked);
    const uint8_t *tile = int4 ? unpacked : data;
    for (int64_t t = 0; t < tokens; t += kTokens) {
      const GroupedInput at = {x.x + t * x.stride, x.stride, x.s_TG + t * w.scale_groups, x.sum_TG + t * w.scale_groups};
      const MultiplyScaled multiply = kMultiplyScaled[std::min(kTokens, tokens - t)];
      for (int64_t j = 0; j < count; ++j)
        multiply(w, first + j, tile + j * w.group / 4 * kGroupBytes, at, y_TR + t * kStripRows);
    }
    data += kgroups * kGroupBytes;
  }
}

void dot_scaled(const ScaledStrip &w, const GroupedInput &x, int64_t tokens, float *y_TR) {
  if (!w.add) std::fill_n(y_TR, tokens * kStripRows, 0.0f);
  if (tokens > 1) {
    many_tokens_scaled(w, x, tokens, y_TR);
  } else if (w.format == MOTE_INT4) {
    one_token_scaled<true>(w, x, y_TR);
  } else {
    one_token_scaled<false>(w, x, y_TR);
  }
}
}  // namespace
}  // namespace mote::VNNI256
