// The exact integers of a packed matrix times int8 activations, whatever the scales: what every kernel is tested by.
#include <algorithm>
#include <cinttypes>
#include <memory>

#include "linear.h"
#include "pool.h"
#include "status.h"
#include "widths.h"

namespace mote {
namespace {

constexpr int64_t kTokens = 64;
constexpr uint16_t kOne = 0x3f80;  // 1 in bf16

struct Integers {
  const Isa &isa;
  const Linear &linear;
  const Form &form;
  int64_t tokens;
  int32_t *y;
  int64_t y_stride;

  void task(int64_t i) const;
  void ternary(const uint8_t *strip, int64_t t0, int64_t tn, int32_t *acc_TR) const;
  void scaled(const uint8_t *strip, int64_t t0, int64_t tn, int32_t *acc_TR) const;
};

void Integers::task(int64_t i) const {
  int32_t acc_TR[kTokens * kStripRows];
  const mote_matrix &w = *linear.w;
  const int64_t strip = i % linear.m.strips, n0 = strip * kStripRows, rows = std::min(kStripRows, w.rows - n0);
  const int64_t t0 = i / linear.m.strips * kTokens, tn = std::min(kTokens, tokens - t0);
  const uint8_t *data = w.data + strip * linear.m.strip_bytes();
  is_ternary(w.format) ? ternary(data, t0, tn, acc_TR) : scaled(data, t0, tn, acc_TR);
  for (int64_t t = 0; t < tn; ++t) std::copy_n(acc_TR + t * kStripRows, rows, y + (t0 + t) * y_stride + n0);
}

void Integers::ternary(const uint8_t *strip, int64_t t0, int64_t tn, int32_t *acc_TR) const {
  const Geometry &m = linear.m;
  isa.dot(linear.w->format, strip, m.kgs, form.x + t0 * form.stride, form.stride, tn, acc_TR);
  for (int64_t t = 0; t < tn; ++t) {
    int32_t sum = 0;
    for (int64_t g = 0; g < m.scales; ++g) sum += form.sum[(t0 + t) * m.scales + g];
    for (int64_t r = 0; r < kStripRows; ++r) acc_TR[t * kStripRows + r] -= sum;
  }
}

// Group after group with all scales 1: the floats that come back are the integers, below 2^24 in magnitude.
void Integers::scaled(const uint8_t *strip, int64_t t0, int64_t tn, int32_t *acc_TR) const {
  const Geometry &m = linear.m;
  const mote_matrix &w = *linear.w;
  uint16_t scale_R[kStripRows];
  float s_T[kTokens], y_TR[kTokens * kStripRows];
  int32_t sum_T[kTokens];
  std::fill_n(scale_R, kStripRows, kOne);
  std::fill_n(s_T, tn, 1.0f);
  std::fill_n(acc_TR, tn * kStripRows, 0);
  for (int64_t g = 0; g < m.scales; ++g) {
    for (int64_t t = 0; t < tn; ++t) sum_T[t] = form.sum[(t0 + t) * m.scales + g];
    const ScaledStrip weights = {strip + g * m.kgs_full * m.kg_bytes, scale_R, m.inputs(g, w.cols), w.group, 1,
                                 w.format};
    const GroupedInput x = {form.x + t0 * form.stride + m.first(g), form.stride, s_T, sum_T};
    dot_integers(isa, weights, x, tn, y_TR);
    for (int64_t i = 0; i < tn * kStripRows; ++i) acc_TR[i] += static_cast<int32_t>(y_TR[i]);
  }
}
}  // namespace
}  // namespace mote

using namespace mote;

extern "C" int mote_matmul_i32(const mote_matrix *w, const int8_t *x_q, int64_t tokens, int64_t x_stride, int32_t *y,
                               int64_t y_stride, int32_t threads) {
  constexpr int64_t kMaxInt8Cols = int64_t{1} << 16;  // 128 * 128 * 2^16 = 2^30: no int32 overflows
  Linear linear;
  if (int status = measure(w, &linear.m)) return status;
  if (is_float(w->format)) return fail(MOTE_UNSUPPORTED, "bf16 and f32 have no integers; use mote_linear_f32");
  if (is_scaled(w->format) && w->cols > kMaxInt8Cols)
    return fail(MOTE_BAD_ARGUMENT, "%" PRId64 " columns may overflow int32; integers take up to %" PRId64, w->cols,
                kMaxInt8Cols);
  if (int status = check_call(*w, x_q, tokens, x_stride, y, y_stride, threads)) return status;
  const Isa *isa = chosen_isa();
  if (!isa) return MOTE_UNSUPPORTED;
  if (tokens == 0) return MOTE_OK;
  linear.w = w;
  Input input(x_q, tokens, w->cols, x_stride);
  if (int status = input.prepare(*isa, linear, threads)) return status;
  Integers work{*isa, linear, *input.form(linear), tokens, y, y_stride};
  const int64_t tasks = linear.m.strips * ceil_div(tokens, kTokens);
  parallel_for(threads, tasks, [](void *self, int64_t i) { static_cast<Integers *>(self)->task(i); }, &work);
  return MOTE_OK;
}
