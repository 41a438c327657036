// What a file of csrc/isa provides: products of one strip of weights with many tokens, and the float kernels.
#pragma once
#include <cstdint>

namespace mote {

// int8 activations with scales per token and scale group, and the sums of each group.
struct GroupedInput {
  const int8_t *x;       // [T, K], scale group g of a token starts at g * group
  int64_t stride;
  const float *s_TG;     // [T, G]
  const int32_t *sum_TG; // [T, G]
};

// One strip of a matrix of integers.
struct ScaledStrip {
  const uint8_t *data;        // k-groups of 256 bytes, scale group after scale group
  const uint16_t *scale_GR;   // bf16 [G, 64]
  int64_t cols, group;        // the last scale group may be shorter; its k-groups are padded with code 0
  int64_t scale_groups;       // G
  int32_t format;
  const uint16_t *zero_GR = nullptr;  // bf16 [G, 64] of a grid that is not symmetric
  bool add = false;           // y_TR holds the sum over scale groups before these, to be added to
};

// Keys, values and queries of one kv head in one layer, for one span of new tokens (csrc/mote.h: mote_span).
struct AttentionSpan {
  const float *q;        // row (token i, query head j of this kv head) at q + i * q_token + j * head_dim, rotated
  float *out;            // likewise, at out + i * q_token + j * head_dim
  int64_t q_token;       // floats from one token to the next
  int64_t heads;         // query heads of this kv head
  int64_t first, count;  // the new tokens to do: i = first .. first + count - 1; token i stands at position start + i
  int64_t start;
  int64_t head_dim;
  void *const *blocks;   // keys at block + k_offset: [head_dim][32]; values at block + v_offset: [32][head_dim]
  int64_t k_offset, v_offset;
  int32_t kv_format;     // MOTE_BF16 or MOTE_F32
  float scale;
};

// Kernels on fp32, written once over 16 lanes (isa/float_kernels.h): the same bits on every ISA with fused multiply-add.
struct FloatKernels {
  // y[t * y_stride + r] = row r of W . x_t in the order of mote_linear_f32; w row-major bf16 or f32 (format), `cols` wide.
  void (*rows_dot)(int32_t format, const uint8_t *w, int64_t rows, int64_t cols, const float *x, int64_t x_stride,
                   int64_t tokens, float *y, int64_t y_stride);
  // mote_quantize_activation of one run of n numbers, plus the sum of its integers.
  void (*quantize)(const float *x, int64_t n, int8_t *x_q, float *s, int32_t *sum);
  // y = x / sqrt(mean(x^2) + eps) * weight. y may be x.
  void (*rms_norm)(const float *x, const float *weight, float eps, int64_t n, float *y);
  // In place: (a, b) -> (a cos - b sin, b cos + a sin) for a in the first and b in the second half of one head.
  void (*rotate)(float *x, const float *cos, const float *sin, int64_t head_dim);
  // y = silu(g) * u. y may be g.
  void (*silu_multiply)(const float *g, const float *u, int64_t n, float *y);
  // y += a * x, not fused.
  void (*add_scaled)(float a, const float *x, int64_t n, float *y);
  // Keys [head_dim] and values [head_dim] of one token and kv head into place `slot` of a block.
  void (*store_kv)(const float *k, const float *v, int64_t head_dim, int64_t slot, int32_t kv_format, void *k_block,
                   void *v_block);
  // out = softmax(q . K * scale) . V over positions 0 .. own, whatever the tiling, in one order of operations.
  // scores: scratch of attend_scratch(start + first + count) floats.
  void (*attend)(const AttentionSpan &span, float *scores);
  int64_t (*attend_scratch)(int64_t positions);
};

struct Isa {
  const char *name;
  bool (*usable)();  // does this CPU, under this operating system, run it?
  // Ternary: acc_TR[t * 64 + r] = sum over `groups` k-groups of digit[r] * x[t], digits 0..2 (weight + 1): the caller
  // takes the sum of x away. strip: groups * 256 bytes of any alignment; x: rows of groups * per_group int8 at x_stride.
  void (*dot)(int32_t format, const uint8_t *strip, int64_t groups, const int8_t *x, int64_t x_stride, int64_t tokens,
              int32_t *acc_TR);
  // int4, int8, uint8: y_TR[t * 64 + r] as mote_linear_f32 says, zero points aside, the sums of x taken away here.
  void (*dot_scaled)(const ScaledStrip &strip, const GroupedInput &x, int64_t tokens, float *y_TR);
  // int2, int3, int6: `groups` k-groups at data, as those of int8 at tile.
  void (*widen)(int32_t format, const uint8_t *data, int64_t groups, uint8_t *tile);
  const FloatKernels *floats;
};

extern const FloatKernels kScalarFloats;
extern const Isa kScalar;
#if defined(MOTE_X86)
extern const FloatKernels kAvx2Floats, kAvx512Floats;
extern const Isa kAvx2, kAvxVnni, kAvx512Vl, kAvx512Vnni;
#endif
#if defined(MOTE_ARM)
extern const FloatKernels kNeonFloats;
extern const Isa kNeon;
#endif

// The one in use, or nullptr with an error recorded.
const Isa *chosen_isa();
}  // namespace mote
