#include <cinttypes>
#include <cstring>

#include "mote.h"
#include "status.h"

namespace {
constexpr uint32_t kInfBits = 0x7f800000;
constexpr float kScaleFloor = 1e-5f;
// Adding and taking away 1.5 * 2^23 rounds |v| < 2^22 to the nearest even integer, in any SIMD width.
constexpr float kRound = 12582912.0f;

// The bits of |x| order as |x| does, NaN above Inf, and an integer maximum vectorises.
uint32_t max_abs_bits(const float *x, int64_t n) {
  uint32_t top = 0;
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    bits &= 0x7fffffff;
    top = bits > top ? bits : top;
  }
  return top;
}
}  // namespace

extern "C" int mote_quantize_activation(const float *x, int64_t tokens, int64_t cols, int64_t x_stride, int8_t *x_q,
                                        int64_t x_q_stride, float *s) {
  if (tokens < 0 || cols < 1 || x_stride < cols || x_q_stride < cols)
    return mote::fail(MOTE_BAD_ARGUMENT, "quantize_activation: %" PRId64 " tokens of %" PRId64 " with strides %" PRId64
                      " and %" PRId64, tokens, cols, x_stride, x_q_stride);
  if (tokens > 0 && (!x || !x_q || !s)) return mote::fail(MOTE_BAD_ARGUMENT, "quantize_activation: null pointer");
  for (int64_t t = 0; t < tokens; ++t) {
    const float *row = x + t * x_stride;
    int8_t *out = x_q + t * x_q_stride;
    const uint32_t top = max_abs_bits(row, cols);
    float a;
    std::memcpy(&a, &top, sizeof a);
    if (top >= kInfBits) {
      std::memset(out, 0, static_cast<size_t>(cols));
      s[t] = a;
      continue;
    }
    a = a > kScaleFloor ? a : kScaleFloor;
    const float inverse = 127.0f / a;
    for (int64_t k = 0; k < cols; ++k) {
      float v = (row[k] * inverse + kRound) - kRound;
      v = v > 127.0f ? 127.0f : v;
      v = v < -128.0f ? -128.0f : v;
      out[k] = static_cast<int8_t>(v);
    }
    s[t] = a / 127.0f;
  }
  return MOTE_OK;
}
