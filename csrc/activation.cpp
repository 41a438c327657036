#include <cinttypes>

#include "format.h"
#include "isa/isa.h"
#include "mote.h"
#include "status.h"

extern "C" int mote_quantize_activation(const float *x, int64_t tokens, int64_t cols, int64_t x_stride, int8_t *x_q,
                                        int64_t x_q_stride, float *s) {
  if (tokens < 0 || cols < 1 || cols > mote::kMaxCols || x_stride < cols || x_q_stride < cols || !mote::fits(tokens, x_stride) ||
      !mote::fits(tokens, x_q_stride))
    return mote::fail(MOTE_BAD_ARGUMENT, "quantize_activation: %" PRId64 " tokens of %" PRId64 " with strides %" PRId64
                      " and %" PRId64, tokens, cols, x_stride, x_q_stride);
  if (tokens > 0 && (!x || !x_q || !s)) return mote::fail(MOTE_BAD_ARGUMENT, "quantize_activation: null pointer");
  const mote::Isa *isa = mote::chosen_isa();
  if (!isa) return MOTE_UNSUPPORTED;
  for (int64_t t = 0; t < tokens; ++t) {
    int32_t sum;
    isa->floats->quantize(x + t * x_stride, cols, x_q + t * x_q_stride, s + t, &sum);
  }
  return MOTE_OK;
}
