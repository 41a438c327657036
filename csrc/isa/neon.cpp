// NEON kernels: the dot-product extension multiplies four signed bytes with four and adds all into int32 (vdotq_s32).
//
// A register holds 4 rows x 4 consecutive inputs, a sixteenth of a k-group's 256 bytes. One token (GEMV) is decoded in
// registers straight from the stream of weights; more tokens share a tile of digits unpacked once into L1. Legend:
// quad = 4 consecutive inputs; a tile is [quad][64 rows][4] digits, 256 bytes a quad.
#include "isa/neon.h"
#include "isa/codes.h"

#include <algorithm>
#if defined(__linux__)
#include <sys/auxv.h>
#endif

namespace mote::neon {
namespace {

constexpr int64_t kQuads = 64;  // of one tile: 16 KiB

inline Codes take_digit(Codes *rest, int power) {
  // A comparison yields -1 where it holds, so that the sum of two is minus the digit.
  const Codes minus = vaddq_u8(vcgeq_u8(*rest, bytes_of(power)), vcgeq_u8(*rest, bytes_of(2 * power)));
  *rest = vmlaq_u8(*rest, minus, bytes_of(power));
  return vreinterpretq_u8_s8(vnegq_s8(vreinterpretq_s8_u8(minus)));
}

template <int32_t F>
constexpr int64_t kQuadsOf = F == MOTE_2BIT ? 4 : 5;

// The digits of 16 bytes: d0 of the first quad of inputs, and so on; d4 only of base-3.
struct Digits {
  Codes d0, d1, d2, d3, d4;
};
template <int32_t F>
inline Digits decode(Codes bytes) {
  Digits d;
  if constexpr (F == MOTE_2BIT) {
    const Codes low = bytes_of(3);
    d.d0 = vandq_u8(bytes, low);
    d.d1 = vandq_u8(vshrq_n_u8(bytes, 2), low);
    d.d2 = vandq_u8(vshrq_n_u8(bytes, 4), low);
    d.d3 = vshrq_n_u8(bytes, 6);
    d.d4 = d.d0;
  } else {
    d.d4 = take_digit(&bytes, 81);
    d.d3 = take_digit(&bytes, 27);
    d.d2 = take_digit(&bytes, 9);
    d.d1 = take_digit(&bytes, 3);
    d.d0 = bytes;
  }
  return d;
}

template <int32_t F>
void unpack(const uint8_t *strip, int64_t groups, uint8_t *tile) {
  for (int64_t g = 0; g < groups; ++g, tile += kQuadsOf<F> * kGroupBytes)
    for (int64_t r = 0; r < kGroupBytes; r += 16) {
      const Digits d = decode<F>(load(strip + g * kGroupBytes + r));
      store(tile + r, d.d0);
      store(tile + 1 * kGroupBytes + r, d.d1);
      store(tile + 2 * kGroupBytes + r, d.d2);
      store(tile + 3 * kGroupBytes + r, d.d3);
      if constexpr (F == MOTE_BASE3) store(tile + 4 * kGroupBytes + r, d.d4);
    }
}

inline void add_to(int32_t *acc, V sums) { vst1q_s32(acc, vaddq_s32(vld1q_s32(acc), sums)); }

// acc_TR += tile . x for T tokens and 64 rows, 16 rows at a time.
template <int T>
__attribute__((noinline)) void multiply_tile(const uint8_t *tile, int64_t quads, const int8_t *x, int64_t x_stride,
                                             int32_t *acc_TR) {
  for (int64_t r = 0; r < kStripRows; r += 16) {
    V acc[4 * T];
    multiply_rows<T>(tile + r * 4, quads, x, x_stride, acc);
    for (int t = 0; t < T; ++t)
      for (int i = 0; i < 4; ++i) add_to(acc_TR + t * kStripRows + r + 4 * i, acc[4 * t + i]);
  }
}

using MultiplyTile = void (*)(const uint8_t *, int64_t, const int8_t *, int64_t, int32_t *);
constexpr MultiplyTile kMultiply[kTokens + 1] = {nullptr,          multiply_tile<1>, multiply_tile<2>, multiply_tile<3>,
                                                 multiply_tile<4>, multiply_tile<5>, multiply_tile<6>};

template <int32_t F>
void many_tokens(const uint8_t *strip, int64_t groups, const int8_t *x, int64_t x_stride, int64_t tokens,
                 int32_t *acc_TR) {
  alignas(64) uint8_t tile[kQuads * kGroupBytes];
  constexpr int64_t kGroups = kQuads / kQuadsOf<F>;
  for (int64_t g = 0; g < groups; g += kGroups) {
    const int64_t count = std::min(kGroups, groups - g);
    unpack<F>(strip + g * kGroupBytes, count, tile);
    for (int64_t t = 0; t < tokens; t += kTokens)
      kMultiply[std::min(kTokens, tokens - t)](tile, count * kQuadsOf<F>, x + t * x_stride + g * kQuadsOf<F> * 4,
                                               x_stride, acc_TR + t * kStripRows);
  }
}

// GEMV. Accumulators b0..b15 hold rows 4i..4i+3; FOR_ROWS repeats for i = 0..15.
#define FOR_ROWS(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9) M(10) M(11) M(12) M(13) M(14) M(15)
#define ZERO(i) V b##i = vdupq_n_s32(0);
#define MULTIPLY(i)                                                  \
  {                                                                  \
    const Digits d = decode<F>(load(strip + 16 * i));                \
    b##i = multiply_add(multiply_add(b##i, d.d0, x0), d.d1, x1);     \
    b##i = multiply_add(multiply_add(b##i, d.d2, x2), d.d3, x3);     \
    if constexpr (F == MOTE_BASE3) b##i = multiply_add(b##i, d.d4, x4); \
  }
#define KEEP(i) vst1q_s32(acc_R + 4 * i, b##i);
template <int32_t F>
void one_token(const uint8_t *strip, int64_t groups, const int8_t *x, int32_t *acc_R) {
  FOR_ROWS(ZERO)
  for (int64_t g = 0; g < groups; ++g, strip += kGroupBytes, x += 4 * kQuadsOf<F>) {
    prefetch_group(strip);
    const Quad x0 = broadcast(x), x1 = broadcast(x + 4), x2 = broadcast(x + 8), x3 = broadcast(x + 12);
    const Quad x4 = F == MOTE_BASE3 ? broadcast(x + 16) : x0;
    (void)x4;
    FOR_ROWS(MULTIPLY)
  }
  FOR_ROWS(KEEP)
}
#undef FOR_ROWS
#undef ZERO
#undef MULTIPLY
#undef KEEP

template <int32_t F>
void dot_as(const uint8_t *strip, int64_t groups, const int8_t *x, int64_t x_stride, int64_t tokens, int32_t *acc_TR) {
  if (tokens == 1) return one_token<F>(strip, groups, x, acc_TR);
  std::fill_n(acc_TR, tokens * kStripRows, 0);
  many_tokens<F>(strip, groups, x, x_stride, tokens, acc_TR);
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
#if defined(__linux__)
  return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#elif defined(__APPLE__)
  return true;  // every Mac with an Arm CPU has it
#else
  return false;
#endif
}
}  // namespace
}  // namespace mote::neon

namespace mote {
const Isa kNeon = {"neon", neon::usable, neon::dot, neon::dot_scaled, widen_codes, &kNeonFloats};
}  // namespace mote
