// Float lanes of Arm's Advanced SIMD (64-bit); what each does is said in lanes_scalar.h.
#pragma once
#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace mote {
namespace {

struct NeonLanes {
  static constexpr int kWidth = 4;
  static constexpr int kTile = 6;
  using V = float32x4_t;

  static V load(const void *p) { return vreinterpretq_f32_u8(vld1q_u8(static_cast<const uint8_t *>(p))); }
  static V load_bf16(const void *p) {
    const uint16x4_t b = vreinterpret_u16_u8(vld1_u8(static_cast<const uint8_t *>(p)));
    return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(b), 16));
  }
  static void store(float *p, V v) { vst1q_f32(p, v); }
  static void store_i8(int8_t *p, V v) {
    const int16x4_t half = vmovn_s32(vcvtnq_s32_f32(v));
    const int8x8_t bytes = vmovn_s16(vcombine_s16(half, half));
    std::memcpy(p, &bytes, 4);
  }
  static V broadcast(float a) { return vdupq_n_f32(a); }
  static V add(V a, V b) { return vaddq_f32(a, b); }
  static V sub(V a, V b) { return vsubq_f32(a, b); }
  static V mul(V a, V b) { return vmulq_f32(a, b); }
  static V div(V a, V b) { return vdivq_f32(a, b); }
  static V fma(V a, V b, V c) { return vfmaq_f32(c, a, b); }
  static V max(V a, V b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  static V min(V a, V b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
  static V abs(V a) { return vabsq_f32(a); }
  static V max_bits(V a, V b) {
    return vreinterpretq_f32_u32(vmaxq_u32(vreinterpretq_u32_f32(a), vreinterpretq_u32_f32(b)));
  }
  static V select(V sign, V a, V b) { return vbslq_f32(vcltzq_s32(vreinterpretq_s32_f32(sign)), a, b); }
  static V pow2(V z) {
    const uint32x4_t exponent = vshlq_n_u32(vreinterpretq_u32_f32(z), 23);
    return vreinterpretq_f32_u32(vaddq_u32(exponent, vdupq_n_u32(0x3f800000)));
  }
  static float sum(const V *v) {
    const V four = vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3]));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
  }
};
}  // namespace
}  // namespace mote
