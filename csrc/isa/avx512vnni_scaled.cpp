// AVX512-VNNI kernels of int4 and int8 with scales per group: vpdpbusd on unsigned codes, and the codes' offset times the
// sum of x taken away per group.
//
// Packed int8 is a tile as it lies: a k-group is one quad of inputs, 64 rows of 4 codes. int4 is unpacked into such a tile
// for several tokens; for one token the upper code of a byte is left in place, at 16 times its value, and its sums are
// divided out exactly. A register holds 16 rows. Legend: quad = 4 consecutive inputs.
#include <algorithm>

#include "format.h"
#include "isa/avx512vnni.h"
#include "isa/scale_group.h"

namespace mote::avx512vnni {
namespace {

constexpr int64_t kTileInputs = 256;  // of one int4 tile, unless a single scale group has more

inline __m512 scales(const uint16_t *bf16) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(bf16));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
// y += float(acc) * (scale * s), for 16 rows.
inline void add_group(float *y, V acc, __m512 scale, __m512 s) {
  const __m512 value = _mm512_cvtepi32_ps(acc);
  _mm512_storeu_ps(y, _mm512_add_ps(_mm512_loadu_ps(y), _mm512_mul_ps(value, _mm512_mul_ps(scale, s))));
}

// GEMV, straight from the packed bytes, rows 16i..16i+15, i = 0..3.
#define FOR_ROWS(M) M(0) M(1) M(2) M(3)
#define START(i) V b##i = correction, c##i = _mm512_setzero_si512();
#define MULTIPLY4(i)                                                        \
  {                                                                         \
    const V v = load(data + 64 * i);                                        \
    b##i = _mm512_dpbusd_epi32(b##i, _mm512_and_si512(v, bytes_of(15)), x0);  \
    c##i = _mm512_dpbusd_epi32(c##i, _mm512_and_si512(v, bytes_of(240)), x1); \
  }
#define MULTIPLY8(i) b##i = _mm512_dpbusd_epi32(b##i, load(data + 64 * i), x0);
#define FINISH(i)                                                                                     \
  add_group(y_R + 16 * i, F == MOTE_INT4 ? _mm512_add_epi32(b##i, _mm512_srai_epi32(c##i, 4)) : b##i, \
            scales(w.scale_GR + g * kStripRows + 16 * i), s);
template <int32_t F>
void one_token(const ScaledStrip &w, const GroupedInput &input, float *y_R) {
  const uint8_t *data = w.data;
  for (int64_t g = 0; g < w.scale_groups; ++g) {
    const ScaleGroup group = scale_group(w, g);
    const int8_t *x = input.x + group.k0;
    // Sums start where the codes' offset times the sum of x is taken away already.
    const V correction = _mm512_set1_epi32((F == MOTE_INT4 ? -8 : -128) * input.sum_TG[g]);
    FOR_ROWS(START)
    for (int64_t k = 0; k < group.quads; k += F == MOTE_INT4 ? 2 : 1, data += kGroupBytes) {
      prefetch_page_ahead(data);
      const V x0 = broadcast(x + 4 * k);
      if constexpr (F == MOTE_INT4) {
        const V x1 = broadcast(x + 4 * k + 4);
        FOR_ROWS(MULTIPLY4)
      } else {
        FOR_ROWS(MULTIPLY8)
      }
    }
    const __m512 s = _mm512_set1_ps(input.s_TG[g]);
    FOR_ROWS(FINISH)
  }
}
#undef FOR_ROWS
#undef START
#undef MULTIPLY4
#undef MULTIPLY8
#undef FINISH

void unpack(const uint8_t *data, int64_t groups, uint8_t *tile) {
  for (int64_t g = 0; g < groups; ++g, data += kGroupBytes, tile += 2 * kGroupBytes)
    for (int64_t r = 0; r < kGroupBytes; r += 64) {
      const V v = load(data + r);
      store(tile + r, _mm512_and_si512(v, bytes_of(15)));
      store(tile + kGroupBytes + r, _mm512_and_si512(_mm512_srli_epi16(v, 4), bytes_of(15)));
    }
}

// Named accumulators a<token><quarter of the rows>, 24 of the 32 registers at T = 6: GCC spills an array of registers.
// FOR_TOKENS repeats a statement for tokens 0..5; those from T on compile to nothing.
#define FOR_TOKENS(M) M(0) M(1) M(2) M(3) M(4) M(5)
#define START(t)                                                                                  \
  const int8_t *x##t = x.x + (t < T ? t : 0) * x.stride + group.k0;                               \
  V a##t##0 = _mm512_set1_epi32(t < T ? offset * x.sum_TG[t * w.scale_groups + g] : 0);           \
  V a##t##1 = a##t##0, a##t##2 = a##t##0, a##t##3 = a##t##0;
#define MULTIPLY(t)                                         \
  if constexpr (t < T) {                                    \
    const V quad = broadcast(x##t + 4 * k);                 \
    a##t##0 = _mm512_dpbusd_epi32(a##t##0, w0, quad);       \
    a##t##1 = _mm512_dpbusd_epi32(a##t##1, w1, quad);       \
    a##t##2 = _mm512_dpbusd_epi32(a##t##2, w2, quad);       \
    a##t##3 = _mm512_dpbusd_epi32(a##t##3, w3, quad);       \
    pin(a##t##0), pin(a##t##1), pin(a##t##2), pin(a##t##3); \
  }
// The last quad and the scaling of one token, so that the next token's products run beside it.
#define FINISH(t)                                                    \
  MULTIPLY(t)                                                        \
  if constexpr (t < T) {                                             \
    const __m512 s = _mm512_set1_ps(x.s_TG[t * w.scale_groups + g]); \
    float *y = y_TR + t * kStripRows;                                \
    add_group(y, a##t##0, scale0, s);                                \
    add_group(y + 16, a##t##1, scale1, s);                           \
    add_group(y + 32, a##t##2, scale2, s);                           \
    add_group(y + 48, a##t##3, scale3, s);                           \
    asm("" ::: "memory");                                            \
  } else {                                                           \
    (void)a##t##1, (void)a##t##2, (void)a##t##3, (void)x##t;         \
  }

// y_TR += scale group g of 64 rows, its codes at tile, for T tokens; x, y_TR: at the first of them.
template <int T>
__attribute__((noinline)) void multiply_group(const ScaledStrip &w, int64_t g, const uint8_t *tile,
                                              const GroupedInput &x, float *y_TR) {
  const ScaleGroup group = scale_group(w, g);
  const int offset = w.format == MOTE_INT4 ? -8 : -128;
  FOR_TOKENS(START)
  int64_t k = 0;
  for (; k + 1 < group.quads; ++k, tile += kGroupBytes) {
    const V w0 = load(tile), w1 = load(tile + 64), w2 = load(tile + 128), w3 = load(tile + 192);
    FOR_TOKENS(MULTIPLY)
  }
  const uint16_t *scale = w.scale_GR + g * kStripRows;
  const __m512 scale0 = scales(scale), scale1 = scales(scale + 16), scale2 = scales(scale + 32),
               scale3 = scales(scale + 48);
  const V w0 = load(tile), w1 = load(tile + 64), w2 = load(tile + 128), w3 = load(tile + 192);
  FOR_TOKENS(FINISH)
}
#undef FOR_TOKENS
#undef START
#undef MULTIPLY
#undef FINISH

using MultiplyGroup = void (*)(const ScaledStrip &, int64_t, const uint8_t *, const GroupedInput &, float *);
constexpr MultiplyGroup kMultiply[7] = {nullptr,           multiply_group<1>, multiply_group<2>, multiply_group<3>,
                                        multiply_group<4>, multiply_group<5>, multiply_group<6>};

// All tokens against scale groups first .. first + count - 1, whose codes lie at tile.
void multiply_tile(const ScaledStrip &w, int64_t first, int64_t count, const uint8_t *tile, GroupedInput x,
                   int64_t tokens, NextTile next, float *y_TR) {
  for (int64_t t = 0; t < tokens; t += 6) {
    next.fetch_part();
    const MultiplyGroup multiply = kMultiply[std::min<int64_t>(6, tokens - t)];
    for (int64_t j = 0; j < count; ++j) multiply(w, first + j, tile + j * w.group / 4 * kGroupBytes, x, y_TR);
    x.x += 6 * x.stride;
    x.s_TG += 6 * w.scale_groups;
    x.sum_TG += 6 * w.scale_groups;
    y_TR += 6 * kStripRows;
  }
}

void many_tokens(const ScaledStrip &w, const GroupedInput &x, int64_t tokens, float *y_TR) {
  alignas(64) uint8_t tile[kMaxScaledGroup / 4 * kGroupBytes];
  const int64_t groups = std::max<int64_t>(1, kTileInputs / w.group);
  const uint8_t *data = w.data;
  for (int64_t first = 0; first < w.scale_groups; first += groups) {
    const int64_t count = std::min(groups, w.scale_groups - first), last = first + count - 1;
    const int64_t quads = (count - 1) * w.group / 4 + scale_group(w, last).quads;
    if (w.format == MOTE_INT4) unpack(data, (quads + 1) / 2, tile);
    const int64_t bytes = (w.format == MOTE_INT4 ? (quads + 1) / 2 : quads) * kGroupBytes;
    multiply_tile(w, first, count, w.format == MOTE_INT4 ? tile : data, x, tokens, NextTile(data + bytes, bytes), y_TR);
    data += bytes;
  }
}
}  // namespace

void dot_scaled(const ScaledStrip &w, const GroupedInput &x, int64_t tokens, float *y_TR) {
  if (!w.add) std::fill_n(y_TR, tokens * kStripRows, 0.0f);
  if (tokens > 1) {
    many_tokens(w, x, tokens, y_TR);
  } else if (w.format == MOTE_INT4) {
    one_token<MOTE_INT4>(w, x, y_TR);
  } else {
    one_token<MOTE_INT8>(w, x, y_TR);
  }
}
}  // namespace mote::avx512vnni
