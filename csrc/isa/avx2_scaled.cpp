// AVX2 kernels of int4 and int8 with scales per group.
//
// int4: vpmaddubsw multiplies codes 0..15 (unsigned) with activations (signed). A pair is at most 2 * 15 * 128 = 3840, so
// 8 quads fit an int16 lane before it must be widened; 8 times the sum of x is taken away per group. int8: for one token
// vpmaddubsw multiplies |x| with the weight in the sign of x, at most 2 * 128 * 127 = 32512 a pair; for several the
// weights are widened to int16 once and vpmaddwd adds pairs into int32. Legend: quad = 4 consecutive inputs; a tile
// holds whole scale groups, [quad][64 rows][4] bytes or [pair][64 rows][2] int16, 256 bytes a quad or pair.
#include <algorithm>

#include "format.h"
#include "isa/avx2.h"
#include "isa/scale_group.h"

namespace mote::avx2 {
namespace {

constexpr int64_t kTileBytes = 16384;  // half of L1; more where a single scale group takes more
constexpr int64_t kTokens = 4;        // multiplied with a tile at once

constexpr int64_t kChunkQuads = 8;    // int4: quads between two widenings

template <int32_t F>
int64_t kgroups(int64_t quads) {
  return F == MOTE_INT4 ? (quads + 1) / 2 : quads;
}

// y += float(acc - correction) * (scale * s), for 8 rows.
inline void add_group(float *y, V acc, V correction, __m256 scale, __m256 s) {
  const __m256 value = _mm256_cvtepi32_ps(_mm256_sub_epi32(acc, correction));
  _mm256_storeu_ps(y, _mm256_add_ps(_mm256_loadu_ps(y), _mm256_mul_ps(value, _mm256_mul_ps(scale, s))));
}

// GEMV, straight from the packed bytes: 256 of them a k-group, 8 rows a register. FOR_ROWS repeats for i = 0..7.
#define FOR_ROWS(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7)
#define ZERO(i) V b##i = _mm256_setzero_si256();
#define MULTIPLY4(i)                                                                   \
  {                                                                                    \
    const V v = load(data + 32 * i);                                                   \
    b##i = multiply_add(b##i, _mm256_and_si256(v, low), x0);                           \
    b##i = multiply_add(b##i, _mm256_and_si256(_mm256_srli_epi16(v, 4), low), x1);     \
  }
#define WIDEN(i) acc[i] = _mm256_add_epi32(acc[i], widen(b##i));
#define MULTIPLY8(i)                                                                                           \
  {                                                                                                            \
    const V v = _mm256_sign_epi8(_mm256_xor_si256(load(data + 32 * i), flip), x0);                             \
    b##i = _mm256_add_epi32(b##i, widen(_mm256_maddubs_epi16(magnitude, v)));                                  \
  }
#define KEEP(i) acc[i] = b##i;

// acc = codes . x of one int4 group; returns the bytes behind it.
inline const uint8_t *group_int4(const uint8_t *data, const int8_t *x, int64_t groups, V *acc) {
  const V low = _mm256_set1_epi8(15);
  for (int i = 0; i < 8; ++i) acc[i] = _mm256_setzero_si256();
  for (int64_t done = 0; done < groups; done += kChunkQuads / 2) {
    FOR_ROWS(ZERO)
    for (int64_t n = std::min(kChunkQuads / 2, groups - done); n > 0; --n, data += kGroupBytes, x += 8) {
      prefetch_lines_ahead(data);
      const V x0 = broadcast(x), x1 = broadcast(x + 4);
      FOR_ROWS(MULTIPLY4)
    }
    FOR_ROWS(WIDEN)
  }
  return data;
}

inline const uint8_t *group_int8(const uint8_t *data, const int8_t *x, int64_t groups, V *acc) {
  const V flip = _mm256_set1_epi8(-128);
  FOR_ROWS(ZERO)
  for (int64_t n = groups; n > 0; --n, data += kGroupBytes, x += 4) {
    prefetch_lines_ahead(data);
    const V x0 = broadcast(x), magnitude = _mm256_abs_epi8(x0);
    FOR_ROWS(MULTIPLY8)
  }
  FOR_ROWS(KEEP)
  return data;
}
#undef FOR_ROWS
#undef ZERO
#undef MULTIPLY4
#undef WIDEN
#undef MULTIPLY8
#undef KEEP

template <int32_t F>
void one_token(const ScaledStrip &w, const GroupedInput &x, float *y_R) {
  const uint8_t *data = w.data;
  for (int64_t g = 0; g < w.scale_groups; ++g) {
    const ScaleGroup group = scale_group(w, g);
    V acc[8];
    if constexpr (F == MOTE_INT4) {
      data = group_int4(data, x.x + group.k0, kgroups<F>(group.quads), acc);
    } else {
      data = group_int8(data, x.x + group.k0, group.quads, acc);
    }
    const V correction = _mm256_set1_epi32(F == MOTE_INT4 ? 8 * x.sum_TG[g] : 0);
    const __m256 s = _mm256_set1_ps(x.s_TG[g]);
    for (int i = 0; i < 8; ++i)
      add_group(y_R + 8 * i, acc[i], correction, scales(w.scale_GR + g * kStripRows + 8 * i), s);
  }
}

// Codes of `groups` k-groups into a tile; of int8 they become signed int16, inputs 0 and 1 before 2 and 3.
template <int32_t F>
void unpack(const uint8_t *data, int64_t groups, uint8_t *tile) {
  const V low = _mm256_set1_epi8(15), flip = _mm256_set1_epi8(-128);
  const V first = _mm256_set1_epi32(0x01800080), second = _mm256_set1_epi32(0x03800280);
  const V lanes = _mm256_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c, 0, 0x04040404, 0x08080808, 0x0c0c0c0c);
  // Bytes with the top bit set shuffle in zeros; adding a lane's offset keeps that bit.
  const V take_first = _mm256_add_epi8(first, lanes), take_second = _mm256_add_epi8(second, lanes);
  for (int64_t g = 0; g < groups; ++g, data += kGroupBytes, tile += 2 * kGroupBytes)
    for (int64_t r = 0; r < kGroupBytes; r += 32) {
      const V v = load(data + r);
      if constexpr (F == MOTE_INT4) {
        store(tile + r, _mm256_and_si256(v, low));
        store(tile + kGroupBytes + r, _mm256_and_si256(_mm256_srli_epi16(v, 4), low));
      } else {
        const V w = _mm256_xor_si256(v, flip);
        store(tile + r, _mm256_srai_epi16(_mm256_shuffle_epi8(w, take_first), 8));
        store(tile + kGroupBytes + r, _mm256_srai_epi16(_mm256_shuffle_epi8(w, take_second), 8));
      }
    }
}

// Named accumulators a<token><half>: GCC spills an array of registers. FOR_TOKENS repeats a statement for tokens 0..3.
#define FOR_TOKENS(M) M(0) M(1) M(2) M(3)
#define ZERO(t) V a##t##0 = _mm256_setzero_si256(), a##t##1 = _mm256_setzero_si256();
#define ZERO_PART(t) V p##t##0 = _mm256_setzero_si256(), p##t##1 = _mm256_setzero_si256();
#define MULTIPLY4(t)                                     \
  if constexpr (t < T) {                                 \
    const V quad = broadcast(x + t * x_stride + 4 * k);  \
    p##t##0 = multiply_add(p##t##0, w0, quad);           \
    p##t##1 = multiply_add(p##t##1, w1, quad);           \
  }
#define WIDEN(t)                                         \
  if constexpr (t < T) {                                 \
    a##t##0 = _mm256_add_epi32(a##t##0, widen(p##t##0)); \
    a##t##1 = _mm256_add_epi32(a##t##1, widen(p##t##1)); \
  }
#define MULTIPLY8(t)                                                     \
  if constexpr (t < T) {                                                 \
    const V pair = broadcast(x + t * x_stride + 2 * k);                  \
    a##t##0 = _mm256_add_epi32(a##t##0, _mm256_madd_epi16(w0, pair));    \
    a##t##1 = _mm256_add_epi32(a##t##1, _mm256_madd_epi16(w1, pair));    \
  }
#define KEEP(t)                                          \
  if constexpr (t < T) {                                 \
    acc[2 * t] = a##t##0, acc[2 * t + 1] = a##t##1;      \
  } else {                                               \
    (void)a##t##0, (void)a##t##1;                        \
  }

// acc[2 t], acc[2 t + 1] = codes of 16 rows . x for T tokens and one int4 group. tile, x: at the group's first quad.
template <int T>
inline void rows_int4(const uint8_t *tile, int64_t quads, const int8_t *x, int64_t x_stride, V *acc) {
  FOR_TOKENS(ZERO)
  for (int64_t k = 0; k < quads;) {
    FOR_TOKENS(ZERO_PART)
    for (const int64_t end = std::min(k + kChunkQuads, quads); k < end; ++k) {
      const V w0 = load(tile + k * kGroupBytes), w1 = load(tile + k * kGroupBytes + 32);
      FOR_TOKENS(MULTIPLY4)
    }
    FOR_TOKENS(WIDEN)
    (void)p10, (void)p11, (void)p20, (void)p21, (void)p30, (void)p31;
  }
  FOR_TOKENS(KEEP)
}

// The same for int8: weights and activations are int16, 2 * quads pairs.
template <int T>
inline void rows_int8(const uint8_t *tile, int64_t quads, const int16_t *x, int64_t x_stride, V *acc) {
  FOR_TOKENS(ZERO)
  for (int64_t k = 0; k < 2 * quads; ++k) {
    const V w0 = load(tile + k * kGroupBytes), w1 = load(tile + k * kGroupBytes + 32);
    FOR_TOKENS(MULTIPLY8)
  }
  FOR_TOKENS(KEEP)
}
#undef FOR_TOKENS
#undef ZERO
#undef ZERO_PART
#undef MULTIPLY4
#undef WIDEN
#undef MULTIPLY8
#undef KEEP

// A tile of scale groups first .. first + count - 1, and the inputs it covers.
struct Tile {
  const uint8_t *bytes;
  int64_t first, count;
};

// y_TR += tile . x for T tokens and 64 rows, 16 rows at a time; x, y_TR: at the first token.
template <int32_t F, int T>
void multiply_tile(const ScaledStrip &w, const Tile &tile, const GroupedInput &x, float *y_TR) {
  constexpr int64_t kRow = kMaxScaledGroup;
  int16_t wide[F == MOTE_INT8 ? T * kRow : 1];
  const int64_t k0 = tile.first * w.group, tile_quads = w.group / 4;
  if constexpr (F == MOTE_INT8) {
    const ScaleGroup last = scale_group(w, tile.first + tile.count - 1);
    for (int64_t t = 0; t < T; ++t)
      for (int64_t i = 0; i < last.k0 - k0 + 4 * last.quads; ++i) wide[t * kRow + i] = x.x[t * x.stride + k0 + i];
  }
  for (int64_t r = 0; r < kStripRows; r += 16)
    for (int64_t j = 0; j < tile.count; ++j) {
      const int64_t g = tile.first + j, quads = scale_group(w, g).quads;
      V acc[2 * T];
      if constexpr (F == MOTE_INT4) {
        rows_int4<T>(tile.bytes + j * tile_quads * kGroupBytes + r * 4, quads, x.x + k0 + j * w.group, x.stride, acc);
      } else {
        rows_int8<T>(tile.bytes + 2 * j * tile_quads * kGroupBytes + r * 4, quads, wide + j * w.group, kRow, acc);
      }
      const __m256 scale0 = scales(w.scale_GR + g * kStripRows + r), scale1 = scales(w.scale_GR + g * kStripRows + r + 8);
      for (int t = 0; t < T; ++t) {
        const V correction = _mm256_set1_epi32(F == MOTE_INT4 ? 8 * x.sum_TG[t * w.scale_groups + g] : 0);
        const __m256 s = _mm256_set1_ps(x.s_TG[t * w.scale_groups + g]);
        add_group(y_TR + t * kStripRows + r, acc[2 * t], correction, scale0, s);
        add_group(y_TR + t * kStripRows + r + 8, acc[2 * t + 1], correction, scale1, s);
      }
    }
}

template <int32_t F>
void many_tokens(const ScaledStrip &w, const GroupedInput &x, int64_t tokens, float *y_TR) {
  constexpr int64_t kQuadBytes = F == MOTE_INT4 ? kGroupBytes : 2 * kGroupBytes;
  alignas(64) uint8_t bytes[kMaxScaledGroup / 4 * kQuadBytes];
  const int64_t groups = std::max<int64_t>(1, kTileBytes / (w.group / 4 * kQuadBytes));
  const uint8_t *data = w.data;
  for (int64_t first = 0; first < w.scale_groups; first += groups) {
    const Tile tile = {bytes, first, std::min(groups, w.scale_groups - first)};
    const ScaleGroup last = scale_group(w, first + tile.count - 1);
    const int64_t count = kgroups<F>((tile.count - 1) * w.group / 4 + last.quads);
    unpack<F>(data, count, bytes);
    data += count * kGroupBytes;
    GroupedInput at = x;
    float *y = y_TR;
    for (int64_t t = 0; t < tokens; t += kTokens) {
      switch (std::min(kTokens, tokens - t)) {
        case 1: multiply_tile<F, 1>(w, tile, at, y); break;
        case 2: multiply_tile<F, 2>(w, tile, at, y); break;
        case 3: multiply_tile<F, 3>(w, tile, at, y); break;
        default: multiply_tile<F, 4>(w, tile, at, y);
      }
      at.x += kTokens * x.stride;
      at.s_TG += kTokens * w.scale_groups;
      at.sum_TG += kTokens * w.scale_groups;
      y += kTokens * kStripRows;
    }
  }
}

// Of uint8 the weight -128 has no opposite, which one_token of int8 needs.
template <int32_t F>
void dot_scaled_as(const ScaledStrip &w, const GroupedInput &x, int64_t tokens, float *y_TR) {
  tokens == 1 && w.format != MOTE_UINT8 ? one_token<F>(w, x, y_TR) : many_tokens<F>(w, x, tokens, y_TR);
}
}  // namespace

void dot_scaled(const ScaledStrip &w, const GroupedInput &x, int64_t tokens, float *y_TR) {
  if (!w.add) std::fill_n(y_TR, tokens * kStripRows, 0.0f);
  w.format == MOTE_INT4 ? dot_scaled_as<MOTE_INT4>(w, x, tokens, y_TR) : dot_scaled_as<MOTE_INT8>(w, x, tokens, y_TR);
}
}  // namespace mote::avx2
