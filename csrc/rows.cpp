// Single rows of a matrix as fp32: the look-up of an embedding.
#include <cinttypes>
#include <cstring>

#include "linear.h"
#include "status.h"

namespace mote {
namespace {

void scaled_row(const Linear &linear, int64_t row, float *y) {
  const mote_matrix &w = *linear.w;
  const Geometry &m = linear.m;
  const int64_t strip = row / kStripRows, r = row % kStripRows;
  const int64_t first = strip * m.scales * kStripRows + r;
  const auto *scale = static_cast<const uint16_t *>(w.scale) + first;
  const auto *zero = w.zero ? static_cast<const uint16_t *>(w.zero) + first : nullptr;
  const uint8_t *data = w.data + strip * m.strip_bytes() + r * 4;
  const auto offset = static_cast<float>(digit_offset(w.format));
  for (int64_t k = 0; k < w.cols; ++k) {
    // Groups are whole k-groups but for the last, so that inputs run through k-groups without a gap.
    const int64_t i = k % m.per_group;
    const auto digit = static_cast<float>(digit_of(w.format, data + k / m.per_group * m.kg_bytes + i % 4, i));
    const int64_t g = k / w.group * kStripRows;
    y[k] = (digit - (zero ? bf16_to_float(zero[g]) : offset)) * bf16_to_float(scale[g]);
  }
}

void copy_row(const mote_matrix &w, int64_t row, float *y) {
  if (w.format == MOTE_F32) {
    std::memcpy(y, w.data + row * w.cols * 4, static_cast<size_t>(w.cols) * 4);
    return;
  }
  for (int64_t k = 0; k < w.cols; ++k) {
    uint16_t bits;
    std::memcpy(&bits, w.data + (row * w.cols + k) * 2, sizeof bits);
    y[k] = bf16_to_float(bits);
  }
}
}  // namespace
}  // namespace mote

using namespace mote;

extern "C" int mote_rows_f32(const mote_matrix *w, const int64_t *rows, int64_t n, float *y, int64_t y_stride) {
  Linear linear;
  if (!w) return fail(MOTE_BAD_ARGUMENT, "the packed matrix is a null pointer");
  if (int status = open_linear(*w, nullptr, &linear)) return status;
  if (is_ternary(w->format)) return fail(MOTE_UNSUPPORTED, "rows of ternary matrices are not looked up; use integers");
  if (n < 0 || y_stride < w->cols || !fits(n, y_stride) || (n > 0 && (!rows || !y)))
    return fail(MOTE_BAD_ARGUMENT, "%" PRId64 " rows of %" PRId64 " with stride %" PRId64 ", or a null pointer", n,
                w->cols, y_stride);
  for (int64_t i = 0; i < n; ++i)
    if (rows[i] < 0 || rows[i] >= w->rows)
      return fail(MOTE_BAD_ARGUMENT, "row %" PRId64 " does not exist; the matrix has %" PRId64, rows[i], w->rows);
  for (int64_t i = 0; i < n; ++i)
    is_scaled(w->format) ? scaled_row(linear, rows[i], y + i * y_stride) : copy_row(*w, rows[i], y + i * y_stride);
  return MOTE_OK;
}
