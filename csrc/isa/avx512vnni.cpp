// AVX512-VNNI kernels: vpdpbusd multiplies digits 0..2 (unsigned) with activations (signed) and adds quads into int32.
//
// A register holds 16 rows x 4 consecutive inputs, a quarter of a k-group's 256 bytes. One token (GEMV) is decoded in
// registers straight from the stream of weights; more tokens share a tile of digits unpacked once into L1. Legend:
// quad = 4 consecutive inputs; a tile is [quad][64 rows][4] digits, 256 bytes a quad.
#include <algorithm>
#include <cstring>

#include "format.h"
#include "isa/avx512vnni.h"
#include "isa/codes.h"

namespace mote::avx512vnni {
namespace {

constexpr int64_t kQuads = 100;  // of one tile: 25 KiB

// The four low base-3 digits of a byte below 81, as the four digits of a 2-bit byte.
struct Table {
  alignas(64) uint8_t bytes[128];
};
constexpr Table make_table() {
  Table table{};
  for (int v = 0; v < 81; ++v)
    table.bytes[v] = static_cast<uint8_t>(v % 3 | v / 3 % 3 << 2 | v / 9 % 3 << 4 | v / 27 << 6);
  return table;
}
constexpr Table kTo2Bit = make_table();

// min(v, v - 81) subtracts only where v >= 81, since otherwise the difference wraps above v; twice covers 162.
inline V below_81(V v) {
  v = _mm512_min_epu8(v, _mm512_sub_epi8(v, bytes_of(81)));
  return _mm512_min_epu8(v, _mm512_sub_epi8(v, bytes_of(81)));
}
inline V to_2bit(V v) {
  return _mm512_permutex2var_epi8(load(kTo2Bit.bytes), v, load(kTo2Bit.bytes + 64));
}

template <int32_t F>
constexpr int64_t kQuadsOf = F == MOTE_2BIT ? 4 : 5;

template <int32_t F>
void unpack(const uint8_t *strip, int64_t groups, uint8_t *tile) {
  for (int64_t g = 0; g < groups; ++g, tile += kQuadsOf<F> * kGroupBytes)
    for (int64_t r = 0; r < kGroupBytes; r += 64) {
      V v = load(strip + g * kGroupBytes + r);
      if constexpr (F == MOTE_BASE3) {
        const V low = below_81(v);
        // digit 4 = 2 - (v < 162) - (v < 81)
        const V top = _mm512_mask_blend_epi8(_mm512_cmplt_epu8_mask(v, bytes_of(162)), bytes_of(2),
                                             _mm512_maskz_mov_epi8(_mm512_cmpge_epu8_mask(v, bytes_of(81)), bytes_of(1)));
        store(tile + 4 * kGroupBytes + r, top);
        v = to_2bit(low);
      }
      store(tile + r, _mm512_and_si512(v, bytes_of(3)));
      store(tile + 1 * kGroupBytes + r, _mm512_and_si512(_mm512_srli_epi16(v, 2), bytes_of(3)));
      store(tile + 2 * kGroupBytes + r, _mm512_and_si512(_mm512_srli_epi16(v, 4), bytes_of(3)));
      store(tile + 3 * kGroupBytes + r, _mm512_and_si512(_mm512_srli_epi16(v, 6), bytes_of(3)));
    }
}

// Named accumulators a<token><quarter of the rows>, 24 of the 32 registers at T = 6: GCC spills an array of registers
// (half the speed). FOR_TOKENS repeats a statement for tokens 0..5; those from T on compile to nothing.
#define FOR_TOKENS(M) M(0) M(1) M(2) M(3) M(4) M(5)
#define START(t)                                                                                     \
  V a##t##0 = _mm512_setzero_si512(), a##t##1 = a##t##0, a##t##2 = a##t##0, a##t##3 = a##t##0;       \
  const int8_t *x##t = x + (t < T ? t : 0) * x_stride;                                               \
  if (t < T && !first) {                                                                             \
    const int32_t *acc = acc_TR + t * kStripRows;                                                    \
    a##t##0 = load(acc), a##t##1 = load(acc + 16), a##t##2 = load(acc + 32), a##t##3 = load(acc + 48); \
  }
#define MULTIPLY(t)                                   \
  if constexpr (t < T) {                              \
    const V quad = broadcast(x##t + 4 * k);           \
    a##t##0 = _mm512_dpbusd_epi32(a##t##0, w0, quad); \
    a##t##1 = _mm512_dpbusd_epi32(a##t##1, w1, quad); \
    a##t##2 = _mm512_dpbusd_epi32(a##t##2, w2, quad); \
    a##t##3 = _mm512_dpbusd_epi32(a##t##3, w3, quad); \
  }
#define FINISH(t)                                                                                         \
  if constexpr (t < T) {                                                                                  \
    int32_t *acc = acc_TR + t * kStripRows;                                                               \
    store(acc, a##t##0), store(acc + 16, a##t##1), store(acc + 32, a##t##2), store(acc + 48, a##t##3);    \
  } else {                                                                                                \
    (void)a##t##1, (void)a##t##2, (void)a##t##3, (void)x##t;                                              \
  }

// acc_TR = (first ? 0 : acc_TR) + tile . x for T tokens and 64 rows.
template <int T>
__attribute__((noinline)) void multiply_tile(const uint8_t *tile, int64_t quads, const int8_t *x, int64_t x_stride,
                                             bool first, int32_t *acc_TR) {
  FOR_TOKENS(START)
  for (int64_t k = 0; k < quads; ++k, tile += kGroupBytes) {
    const V w0 = load(tile), w1 = load(tile + 64), w2 = load(tile + 128), w3 = load(tile + 192);
    FOR_TOKENS(MULTIPLY)
  }
  FOR_TOKENS(FINISH)
}
#undef FOR_TOKENS
#undef START
#undef MULTIPLY
#undef FINISH

using MultiplyTile = void (*)(const uint8_t *, int64_t, const int8_t *, int64_t, bool, int32_t *);
constexpr MultiplyTile kMultiplyTail[6] = {nullptr,          multiply_tile<1>, multiply_tile<2>,
                                           multiply_tile<3>, multiply_tile<4>, multiply_tile<5>};

template <int32_t F>
void many_tokens(const uint8_t *strip, int64_t groups, const int8_t *x, int64_t x_stride, int64_t tokens,
                 int32_t *acc_TR) {
  alignas(64) uint8_t tile[kQuads * kGroupBytes];
  constexpr int64_t kGroups = kQuads / kQuadsOf<F>;
  for (int64_t g = 0; g < groups; g += kGroups) {
    const int64_t count = std::min(kGroups, groups - g), quads = count * kQuadsOf<F>;
    unpack<F>(strip + g * kGroupBytes, count, tile);
    const int8_t *row = x + g * kQuadsOf<F> * 4;
    int32_t *acc = acc_TR;
    int64_t t = 0;
    NextTile next(strip + (g + count) * kGroupBytes, count * kGroupBytes);
    for (; t + 6 <= tokens; t += 6, row += 6 * x_stride, acc += 6 * kStripRows) {
      next.fetch_part();
      multiply_tile<6>(tile, quads, row, x_stride, g == 0, acc);
    }
    if (t < tokens) kMultiplyTail[tokens - t](tile, quads, row, x_stride, g == 0, acc);
  }
}

// GEMV, straight from the packed bytes, for rows 16i..16i+15, i = 0..3. Of two neighbouring digits the upper is left in
// place, at 4 times its value, which saves a shift: b<i> collects digits 0 and 2, c<i> four times digits 1 and 3, and
// d<i> 81 times the top base-3 digit. Both factors are divided out at the end, exactly.
#define FOR_ROWS(M) M(0) M(1) M(2) M(3)
#define ZERO(i) V b##i = _mm512_setzero_si512(), c##i = b##i, d##i = b##i;
#define MULTIPLY(i)                                                          \
  {                                                                          \
    V v = load(strip + 64 * i);                                              \
    if constexpr (F == MOTE_BASE3) {                                         \
      const V low = below_81(v);                                             \
      d##i = _mm512_dpbusd_epi32(d##i, _mm512_sub_epi8(v, low), x4);         \
      pin(d##i);                                                             \
      v = to_2bit(low);                                                      \
    }                                                                        \
    const V u = _mm512_srli_epi16(v, 4);                                     \
    b##i = _mm512_dpbusd_epi32(b##i, _mm512_and_si512(v, bytes_of(3)), x0);  \
    c##i = _mm512_dpbusd_epi32(c##i, _mm512_and_si512(v, bytes_of(12)), x1); \
    b##i = _mm512_dpbusd_epi32(b##i, _mm512_and_si512(u, bytes_of(3)), x2);  \
    c##i = _mm512_dpbusd_epi32(c##i, _mm512_and_si512(u, bytes_of(12)), x3); \
    pin(b##i), pin(c##i);                                                    \
  }
#define FINISH(i)                                                                                                   \
  {                                                                                                                 \
    V sum = _mm512_add_epi32(b##i, _mm512_srai_epi32(c##i, 2));                                                     \
    if constexpr (F == MOTE_BASE3) sum = _mm512_add_epi32(sum, _mm512_mullo_epi32(d##i, _mm512_set1_epi32(kInverse81))); \
    store(acc_R + 16 * i, sum);                                                                                     \
  }
template <int32_t F>
void one_token(const uint8_t *strip, int64_t groups, const int8_t *x, int32_t *acc_R) {
  // 81 * kInverse81 = 1 modulo 2^32, so multiplying a multiple of 81 by it divides exactly.
  constexpr int kInverse81 = static_cast<int>(0x781948B1U);
  static_assert(81u * static_cast<uint32_t>(kInverse81) == 1u);
  FOR_ROWS(ZERO)
  for (int64_t g = 0; g < groups; ++g, strip += kGroupBytes, x += 4 * kQuadsOf<F>) {
    prefetch_page_ahead(strip);
    const V x0 = broadcast(x), x1 = broadcast(x + 4), x2 = broadcast(x + 8), x3 = broadcast(x + 12);
    const V x4 = F == MOTE_BASE3 ? broadcast(x + 16) : x0;
    FOR_ROWS(MULTIPLY)
    (void)x4;
  }
  FOR_ROWS(FINISH)
  (void)d0, (void)d1, (void)d2, (void)d3, (void)kInverse81;
}
#undef FOR_ROWS
#undef ZERO
#undef MULTIPLY
#undef FINISH

template <int32_t F>
void dot_as(const uint8_t *strip, int64_t groups, const int8_t *x, int64_t x_stride, int64_t tokens, int32_t *acc_TR) {
  if (tokens == 1) {
    one_token<F>(strip, groups, x, acc_TR);
  } else {
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

bool usable() {
#if defined(MOTE_EMULATE_AVX512)
  return true;
#else
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
#endif
}
}  // namespace
}  // namespace mote::avx512vnni

namespace mote {
const Isa kAvx512Vnni = {"avx512vnni", avx512vnni::usable, avx512vnni::dot, avx512vnni::dot_scaled, widen_codes, &kAvx512Floats};
}  // namespace mote
