#include "format.h"

#include <algorithm>
#include <cinttypes>

#include "status.h"

namespace mote {

// Far above any model and far below an int32 accumulator's or an int64 size's end: 2 * 128 * 2^22 = 2^30.
constexpr int64_t kMaxCols = int64_t{1} << 22;
constexpr int64_t kMaxRows = int64_t{1} << 31;

int measure(int32_t format, int64_t rows, int64_t cols, int64_t group, Geometry *geometry) {
  if (format != MOTE_2BIT && format != MOTE_BASE3)
    return fail(MOTE_BAD_ARGUMENT, "packed format %d is unknown; use 1 (2bit) or 2 (base3)", format);
  if (rows < 1 || rows > kMaxRows || cols < 1 || cols > kMaxCols)
    return fail(MOTE_BAD_ARGUMENT, "a packed matrix of %" PRId64 " x %" PRId64 " is out of range (1 to %" PRId64
                " rows, 1 to %" PRId64 " columns)", rows, cols, kMaxRows, kMaxCols);
  if (group < 0 || group > kMaxCols)
    return fail(MOTE_BAD_ARGUMENT, "scale group of %" PRId64 " inputs is out of range (0 for none)", group);
  if (format == MOTE_2BIT && group % 16 != 0)
    return fail(MOTE_BAD_ARGUMENT, "2bit needs scale groups of a multiple of 16 inputs, not %" PRId64, group);
  Geometry m{};
  m.per_group = format == MOTE_2BIT ? 16 : 20;
  m.strips = (rows + kStripRows - 1) / kStripRows;
  m.group = group ? group : cols;
  m.scales = (cols + m.group - 1) / m.group;
  m.kgs_full = (m.group + m.per_group - 1) / m.per_group;
  m.kgs = (m.scales - 1) * m.kgs_full + m.kgs_of(m.scales - 1, cols);
  m.bytes = m.strips * m.kgs * kGroupBytes;
  *geometry = m;
  return MOTE_OK;
}

int measure(const mote_matrix *w, Geometry *geometry) {
  if (!w || !w->data) return fail(MOTE_BAD_ARGUMENT, "the packed matrix is a null pointer");
  if (int status = measure(w->format, w->rows, w->cols, w->group, geometry)) return status;
  if (w->bytes != geometry->bytes)
    return fail(MOTE_BAD_ARGUMENT, "a packed matrix of %" PRId64 " x %" PRId64 " takes %" PRId64 " bytes, not %" PRId64,
                w->rows, w->cols, geometry->bytes, w->bytes);
  return MOTE_OK;
}

namespace {
struct Place {
  int64_t kg;  // k-group within the strip
  int64_t k0;  // its first input
  int64_t n;   // its inputs that exist; the rest is padding
};

template <class Visit>
void each_kgroup(const Geometry &m, int64_t cols, Visit visit) {
  for (int64_t g = 0; g < m.scales; ++g) {
    const int64_t end = m.first(g) + m.inputs(g, cols);
    for (int64_t i = 0; i < m.kgs_of(g, cols); ++i) {
      const int64_t k0 = m.first(g) + i * m.per_group;
      visit(Place{g * m.kgs_full + i, k0, std::min(m.per_group, end - k0)});
    }
  }
}
}  // namespace
}  // namespace mote

using namespace mote;

extern "C" {

int64_t mote_packed_bytes(int32_t format, int64_t rows, int64_t cols, int64_t group) {
  Geometry m{};
  return measure(format, rows, cols, group, &m) ? -1 : m.bytes;
}

int mote_pack(int32_t format, int64_t rows, int64_t cols, int64_t group, const int8_t *q, int64_t q_stride, uint8_t *out,
              int64_t out_bytes) {
  Geometry m{};
  if (int status = measure(format, rows, cols, group, &m)) return status;
  if (!q || !out || q_stride < cols) return fail(MOTE_BAD_ARGUMENT, "pack: null pointer, or a stride below the columns");
  if (out_bytes != m.bytes)
    return fail(MOTE_BAD_ARGUMENT, "pack: the output takes %" PRId64 " bytes, not %" PRId64, m.bytes, out_bytes);
  for (int64_t n = 0; n < rows; ++n)
    for (int64_t k = 0; k < cols; ++k)
      if (q[n * q_stride + k] < -1 || q[n * q_stride + k] > 1)
        return fail(MOTE_BAD_VALUE, "pack: value %d at [%" PRId64 ", %" PRId64 "] is not -1, 0 or 1",
                    q[n * q_stride + k], n, k);
  const int digits = static_cast<int>(m.per_group / 4);
  each_kgroup(m, cols, [&](Place place) {
    for (int64_t n = 0; n < m.strips * kStripRows; ++n)
      for (int b = 0; b < 4; ++b) {
        uint8_t byte = 0;
        for (int p = 0; p < digits; ++p) {
          const int64_t i = p * 4 + b;
          const bool real = n < rows && i < place.n;
          byte = static_cast<uint8_t>(byte + pack_digit(format, p, real ? q[n * q_stride + place.k0 + i] + 1 : 1));
        }
        out[(n / kStripRows * m.kgs + place.kg) * kGroupBytes + n % kStripRows * 4 + b] = byte;
      }
  });
  return MOTE_OK;
}

int mote_unpack(const mote_matrix *w, int8_t *q, int64_t q_stride) {
  Geometry m{};
  if (int status = measure(w, &m)) return status;
  if (!q || q_stride < w->cols) return fail(MOTE_BAD_ARGUMENT, "unpack: null pointer, or a stride below the columns");
  for (int64_t i = 0; i < m.bytes; ++i) {
    const uint8_t byte = w->data[i];
    if (w->format == MOTE_2BIT ? (byte & (byte >> 1) & 0x55) != 0 : byte > 242)
      return fail(MOTE_BAD_VALUE, "unpack: byte %d at offset %" PRId64 " holds no ternary digits; the data is damaged",
                  byte, i);
  }
  each_kgroup(m, w->cols, [&](Place place) {
    for (int64_t n = 0; n < w->rows; ++n)
      for (int64_t i = 0; i < place.n; ++i) {
        const int64_t at = (n / kStripRows * m.kgs + place.kg) * kGroupBytes + n % kStripRows * 4 + i % 4;
        q[n * q_stride + place.k0 + i] =
            static_cast<int8_t>(unpack_digit(w->format, static_cast<int>(i / 4), w->data[at]) - 1);
      }
  });
  return MOTE_OK;
}
}
