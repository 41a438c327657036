// AVX2 kernels: vpmaddubsw multiplies digits 0..2 (unsigned) with activations (signed) and adds pairs into int16.
//
// A pair is at most 2 * 2 * 128 = 512 in magnitude, so 64 of them fit an int16 lane (-32768..32512) before it must be
// widened to int32: 64 quads of inputs, 16 k-groups in 2-bit and 12 (60 quads) in base-3. A register holds 8 rows x 4
// consecutive inputs. Legend: quad = 4 consecutive inputs; a tile is [quad][64 rows][4] digits, 256 bytes a quad.
#include <algorithm>
#include <cstring>

#include "format.h"
#include "isa/avx2.h"
#include "isa/codes.h"
#include "isa/digits_avx2.h"

namespace mote::avx2 {
namespace {

constexpr int64_t kQuads = 64;          // of one block

template <int32_t F>
constexpr int64_t kGroups = kQuads / kQuadsOf<F>;

// Named accumulators a<token><half>: GCC spills an array of registers. FOR_TOKENS repeats a statement for tokens 0..3.
#define FOR_TOKENS(M) M(0) M(1) M(2) M(3)
#define ROW(t) const int8_t *x##t = x + (t < T ? t : 0) * x_stride;
#define ZERO(t) V a##t##0 = _mm256_setzero_si256(), a##t##1 = _mm256_setzero_si256();
#define MULTIPLY(t)                              \
  if constexpr (t < T) {                         \
    const V quad = broadcast(x##t + 4 * k);      \
    a##t##0 = multiply_add(a##t##0, w0, quad);   \
    a##t##1 = multiply_add(a##t##1, w1, quad);   \
  }
#define ADD(t)                                                                                 \
  if constexpr (t < T) {                                                                       \
    int32_t *acc = acc_TR + t * kStripRows + r;                                                \
    store(acc, _mm256_add_epi32(load(acc), widen(a##t##0)));                                   \
    store(acc + 8, _mm256_add_epi32(load(acc + 8), widen(a##t##1)));                           \
  }

// acc_TR += tile . x for T tokens and 64 rows, 16 rows at a time.
template <int T>
void multiply_tile(const uint8_t *tile, int64_t quads, const int8_t *x, int64_t x_stride, int32_t *acc_TR) {
  FOR_TOKENS(ROW)
  (void)x1, (void)x2, (void)x3;
  for (int64_t r = 0; r < kStripRows; r += 16) {
    FOR_TOKENS(ZERO)
    const uint8_t *w = tile + r * 4;
    for (int64_t k = 0; k < quads; ++k, w += kGroupBytes) {
      const V w0 = load(w), w1 = load(w + 32);
      FOR_TOKENS(MULTIPLY)
    }
    FOR_TOKENS(ADD)
    (void)a10, (void)a11, (void)a20, (void)a21, (void)a30, (void)a31;
  }
}
#undef FOR_TOKENS
#undef ROW
#undef ZERO
#undef MULTIPLY
#undef ADD

template <int32_t F>
void many_tokens(const uint8_t *strip, int64_t groups, const int8_t *x, int64_t x_stride, int64_t tokens,
                 int32_t *acc_TR) {
  alignas(32) uint8_t tile[kQuads * kGroupBytes];
  for (int64_t g = 0; g < groups; g += kGroups<F>) {
    const int64_t count = std::min(kGroups<F>, groups - g), quads = count * kQuadsOf<F>;
    unpack_digits<F>(strip + g * kGroupBytes, count, tile);
    const int8_t *row = x + g * kQuadsOf<F> * 4;
    int32_t *acc = acc_TR;
    int64_t t = 0;
    for (; t + 4 <= tokens; t += 4, row += 4 * x_stride, acc += 4 * kStripRows)
      multiply_tile<4>(tile, quads, row, x_stride, acc);
    if (tokens - t == 3) multiply_tile<3>(tile, quads, row, x_stride, acc);
    if (tokens - t == 2) multiply_tile<2>(tile, quads, row, x_stride, acc);
    if (tokens - t == 1) multiply_tile<1>(tile, quads, row, x_stride, acc);
  }
}

// GEMV, straight from the packed bytes. Accumulators b0..b7 hold rows 8i..8i+7; FOR_ROWS repeats for i = 0..7.
#define FOR_ROWS(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7)
#define ZERO(i) V b##i = _mm256_setzero_si256();
#define MULTIPLY(i) b##i = multiply_group<F, multiply_add>(b##i, load(strip + 32 * i), x0, x1, x2, x3, x4);
#define ADD(i) store(acc_R + 8 * i, _mm256_add_epi32(load(acc_R + 8 * i), widen(b##i)));
template <int32_t F>
void one_token(const uint8_t *strip, int64_t groups, const int8_t *x, int32_t *acc_R) {
  for (int64_t start = 0; start < groups; start += kGroups<F>) {
    const int64_t count = std::min(kGroups<F>, groups - start);
    FOR_ROWS(ZERO)
    for (int64_t g = 0; g < count; ++g, strip += kGroupBytes, x += 4 * kQuadsOf<F>) {
      prefetch_lines_ahead(strip);
      const V x0 = broadcast(x), x1 = broadcast(x + 4), x2 = broadcast(x + 8), x3 = broadcast(x + 12);
      const V x4 = F == MOTE_BASE3 ? broadcast(x + 16) : x0;
      FOR_ROWS(MULTIPLY)
    }
    FOR_ROWS(ADD)
  }
}
#undef FOR_ROWS
#undef ZERO
#undef MULTIPLY
#undef ADD

template <int32_t F>
void dot_as(const uint8_t *strip, int64_t groups, const int8_t *x, int64_t x_stride, int64_t tokens, int32_t *acc_TR) {
  std::memset(acc_TR, 0, static_cast<size_t>(tokens * kStripRows) * sizeof *acc_TR);
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

bool usable() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
}  // namespace
}  // namespace mote::avx2

namespace mote {
const Isa kAvx2 = {"avx2", avx2::usable, avx2::dot, avx2::dot_scaled, widen_codes, &kAvx2Floats};
}  // namespace mote
