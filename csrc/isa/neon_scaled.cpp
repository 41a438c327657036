// NEON kernels of int4 and int8 with scales per group: vdotq_s32 on int4 codes 0..15, whose offset times the sum of x
// is taken away per group, and on the signed bytes of int8 (byte ^ 0x80), which need no correction.
//
// Several tokens share a tile of codes unpacked once into L1: [quad][64 rows][4], 256 bytes a quad. A register holds 4
// rows. Legend: quad = 4 consecutive inputs.
#include <algorithm>

#include "isa/neon.h"
#include "isa/scale_group.h"

namespace mote::neon {
namespace {

constexpr int64_t kTileInputs = 256;  // of one tile, unless a single scale group has more

inline float32x4_t scales(const uint16_t *bf16) {
  return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(vld1_u16(bf16)), 16));
}
// y += float(acc - correction) * (scale * s), for 4 rows.
inline void add_group(float *y, V acc, V correction, float32x4_t scale, float32x4_t s) {
  const float32x4_t value = vcvtq_f32_s32(vsubq_s32(acc, correction));
  vst1q_f32(y, vaddq_f32(vld1q_f32(y), vmulq_f32(value, vmulq_f32(scale, s))));
}
inline V correction_of(int32_t format, int32_t sum) { return vdupq_n_s32(format == MOTE_INT4 ? 8 * sum : 0); }

// GEMV, straight from the packed bytes. Accumulators b0..b15 hold rows 4i..4i+3; FOR_ROWS repeats for i = 0..15.
#define FOR_ROWS(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9) M(10) M(11) M(12) M(13) M(14) M(15)
#define ZERO(i) V b##i = vdupq_n_s32(0);
#define MULTIPLY4(i)                                                \
  {                                                                 \
    const Codes v = load(data + 16 * i);                            \
    b##i = multiply_add(b##i, vandq_u8(v, bytes_of(15)), x0);       \
    b##i = multiply_add(b##i, vshrq_n_u8(v, 4), x1);                \
  }
#define MULTIPLY8(i) b##i = multiply_add(b##i, veorq_u8(load(data + 16 * i), bytes_of(128)), x0);
#define FINISH(i) add_group(y_R + 4 * i, b##i, correction, scales(w.scale_GR + g * kStripRows + 4 * i), s);
template <int32_t F>
void one_token(const ScaledStrip &w, const GroupedInput &input, float *y_R) {
  const uint8_t *data = w.data;
  for (int64_t g = 0; g < w.scale_groups; ++g) {
    const ScaleGroup group = scale_group(w, g);
    const int8_t *x = input.x + group.k0;
    FOR_ROWS(ZERO)
    for (int64_t k = 0; k < group.quads; k += F == MOTE_INT4 ? 2 : 1, data += kGroupBytes) {
      prefetch_group(data);
      const Quad x0 = broadcast(x + 4 * k);
      if constexpr (F == MOTE_INT4) {
        const Quad x1 = broadcast(x + 4 * k + 4);
        FOR_ROWS(MULTIPLY4)
      } else {
        FOR_ROWS(MULTIPLY8)
      }
    }
    const V correction = correction_of(F, input.sum_TG[g]);
    const float32x4_t s = vdupq_n_f32(input.s_TG[g]);
    FOR_ROWS(FINISH)
  }
}
#undef FOR_ROWS
#undef ZERO
#undef MULTIPLY4
#undef MULTIPLY8
#undef FINISH

// Codes of `groups` k-groups into a tile.
void unpack(int32_t format, const uint8_t *data, int64_t groups, uint8_t *tile) {
  const int64_t bytes = groups * kGroupBytes;
  if (format != MOTE_INT4) {
    for (int64_t i = 0; i < bytes; i += 16) store(tile + i, veorq_u8(load(data + i), bytes_of(128)));
    return;
  }
  for (int64_t g = 0; g < groups; ++g, data += kGroupBytes, tile += 2 * kGroupBytes)
    for (int64_t r = 0; r < kGroupBytes; r += 16) {
      const Codes v = load(data + r);
      store(tile + r, vandq_u8(v, bytes_of(15)));
      store(tile + kGroupBytes + r, vshrq_n_u8(v, 4));
    }
}

// y_TR += scale group g of 64 rows, its codes at tile, for T tokens; x, y_TR: at the first of them.
template <int T>
__attribute__((noinline)) void multiply_group(const ScaledStrip &w, int64_t g, const uint8_t *tile,
                                              const GroupedInput &x, float *y_TR) {
  const ScaleGroup group = scale_group(w, g);
  for (int64_t r = 0; r < kStripRows; r += 16) {
    V acc[4 * T];
    multiply_rows<T>(tile + r * 4, group.quads, x.x + group.k0, x.stride, acc);
    for (int t = 0; t < T; ++t) {
      const V correction = correction_of(w.format, x.sum_TG[t * w.scale_groups + g]);
      const float32x4_t s = vdupq_n_f32(x.s_TG[t * w.scale_groups + g]);
      for (int i = 0; i < 4; ++i)
        add_group(y_TR + t * kStripRows + r + 4 * i, acc[4 * t + i], correction,
                  scales(w.scale_GR + g * kStripRows + r + 4 * i), s);
    }
  }
}

using MultiplyGroup = void (*)(const ScaledStrip &, int64_t, const uint8_t *, const GroupedInput &, float *);
constexpr MultiplyGroup kMultiply[kTokens + 1] = {
    nullptr, multiply_group<1>, multiply_group<2>, multiply_group<3>, multiply_group<4>, multiply_group<5>,
    multiply_group<6>};

// All tokens against scale groups first .. first + count - 1, whose codes lie at tile.
void multiply_tile(const ScaledStrip &w, int64_t first, int64_t count, const uint8_t *tile, GroupedInput x,
                   int64_t tokens, float *y_TR) {
  for (int64_t t = 0; t < tokens; t += kTokens) {
    const MultiplyGroup multiply = kMultiply[std::min(kTokens, tokens - t)];
    for (int64_t j = 0; j < count; ++j) multiply(w, first + j, tile + j * w.group / 4 * kGroupBytes, x, y_TR);
    x.x += kTokens * x.stride;
    x.s_TG += kTokens * w.scale_groups;
    x.sum_TG += kTokens * w.scale_groups;
    y_TR += kTokens * kStripRows;
  }
}

void many_tokens(const ScaledStrip &w, const GroupedInput &x, int64_t tokens, float *y_TR) {
  alignas(64) uint8_t tile[kMaxScaledGroup / 4 * kGroupBytes];
  const int64_t groups = std::max<int64_t>(1, kTileInputs / w.group);
  const uint8_t *data = w.data;
  for (int64_t first = 0; first < w.scale_groups; first += groups) {
    const int64_t count = std::min(groups, w.scale_groups - first);
    const int64_t quads = (count - 1) * w.group / 4 + scale_group(w, first + count - 1).quads;
    const int64_t kgroups = w.format == MOTE_INT4 ? (quads + 1) / 2 : quads;
    unpack(w.format, data, kgroups, tile);
    multiply_tile(w, first, count, tile, x, tokens, y_TR);
    data += kgroups * kGroupBytes;
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
}  // namespace mote::neon
