#include "format.h"

#include <algorithm>
#include <cinttypes>

#include "status.h"

namespace mote {

constexpr int64_t kMaxRows = int64_t{1} << 31;

namespace {
constexpr const char *kNames[] = {"", "2bit", "base3", "int4", "int8", "bf16", "f32", "int2", "int3", "int6", "uint8"};

int check_group(int32_t format, int64_t group) {
  if (group < 0 || group > kMaxCols)
    return fail(MOTE_BAD_ARGUMENT, "scale group of %" PRId64 " inputs is out of range (0 for none)", group);
  if (format == MOTE_2BIT && group % 16 != 0)
    return fail(MOTE_BAD_ARGUMENT, "2bit needs scale groups of a multiple of 16 inputs, not %" PRId64, group);
  if (is_scaled(format) && (group < 1 || group > kMaxScaledGroup || group % inputs_per_group(format) != 0))
    return fail(MOTE_BAD_ARGUMENT, "%s needs scale groups of a multiple of %" PRId64 " inputs up to %" PRId64
                ", not %" PRId64, kNames[format], inputs_per_group(format), kMaxScaledGroup, group);
  if (is_float(format) && group != 0)
    return fail(MOTE_BAD_ARGUMENT, "bf16 and f32 have no scale groups, not groups of %" PRId64, group);
  return MOTE_OK;
}
}  // namespace

int measure(int32_t format, int64_t rows, int64_t cols, int64_t group, Geometry *geometry) {
  if (format < MOTE_2BIT || format > MOTE_UINT8)
    return fail(MOTE_BAD_ARGUMENT, "packed format %d is unknown; use 1 (2bit), 2 (base3), 3 (int4), 4 (int8), 5 (bf16),"
                " 6 (f32), 7 (int2), 8 (int3), 9 (int6) or 10 (uint8)", format);
  if (rows < 1 || rows > kMaxRows || cols < 1 || cols > kMaxCols)
    return fail(MOTE_BAD_ARGUMENT, "a packed matrix of %" PRId64 " x %" PRId64 " is out of range (1 to %" PRId64
                " rows, 1 to %" PRId64 " columns)", rows, cols, kMaxRows, kMaxCols);
  if (int status = check_group(format, group)) return status;
  Geometry m{};
  m.per_group = inputs_per_group(format);
  m.kg_bytes = kgroup_bytes(format);
  m.strips = ceil_div(rows, kStripRows);
  m.group = group ? group : cols;
  m.scales = ceil_div(cols, m.group);
  m.kgs_full = ceil_div(m.group, m.per_group);
  m.kgs = (m.scales - 1) * m.kgs_full + m.kgs_of(m.scales - 1, cols);
  m.bytes = is_float(format) ? rows * cols * (format == MOTE_BF16 ? 2 : 4) : m.strips * m.strip_bytes();
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

bool legal(int32_t format, uint8_t byte) {
  switch (format) {
    case MOTE_2BIT: return (byte & (byte >> 1) & 0x55) == 0;
    case MOTE_BASE3: return byte <= 242;
    case MOTE_INT8: return byte != 0;
    default: return true;
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
  if (is_float(format)) return fail(MOTE_UNSUPPORTED, "pack: bf16 and f32 stay row-major; there is nothing to pack");
  if (!q || !out || q_stride < cols || !fits(rows, q_stride))
    return fail(MOTE_BAD_ARGUMENT, "pack: null pointer, or a stride below the columns or beyond all memory");
  if (out_bytes != m.bytes)
    return fail(MOTE_BAD_ARGUMENT, "pack: the output takes %" PRId64 " bytes, not %" PRId64, m.bytes, out_bytes);
  const int offset = digit_offset(format), high = is_ternary(format) ? 1 : offset - 1;
  const int low = format == MOTE_INT8 ? -127 : -offset;
  for (int64_t n = 0; n < rows; ++n)
    for (int64_t k = 0; k < cols; ++k)
      if (q[n * q_stride + k] < low || q[n * q_stride + k] > high)
        return fail(MOTE_BAD_VALUE, "pack: value %d at [%" PRId64 ", %" PRId64 "] is not in %d..%d",
                    q[n * q_stride + k], n, k, low, high);
  std::memset(out, 0, static_cast<size_t>(m.bytes));
  each_kgroup(m, cols, [&](Place place) {
    for (int64_t n = 0; n < m.strips * kStripRows; ++n) {
      uint8_t *at = out + (n / kStripRows * m.kgs + place.kg) * m.kg_bytes + n % kStripRows * 4;
      for (int64_t i = 0; i < m.per_group; ++i) {
        const bool real = n < rows && i < place.n;
        put_digit(format, at + i % 4, i, offset + (real ? q[n * q_stride + place.k0 + i] : 0));
      }
    }
  });
  return MOTE_OK;
}

int mote_unpack(const mote_matrix *w, int8_t *q, int64_t q_stride) {
  Geometry m{};
  if (int status = measure(w, &m)) return status;
  if (!q || q_stride < w->cols || !fits(w->rows, q_stride))
    return fail(MOTE_BAD_ARGUMENT, "unpack: null pointer, or a stride below the columns or beyond all memory");
  if (is_float(w->format)) return fail(MOTE_UNSUPPORTED, "unpack: bf16 and f32 are not packed");
  for (int64_t i = 0; i < m.bytes; ++i)
    if (!legal(w->format, w->data[i]))
      return fail(MOTE_BAD_VALUE, "unpack: byte %d at offset %" PRId64 " is one that no packing writes; the data is damaged",
                  w->data[i], i);
  const int offset = digit_offset(w->format);
  each_kgroup(m, w->cols, [&](Place place) {
    for (int64_t n = 0; n < w->rows; ++n)
      for (int64_t i = 0; i < place.n; ++i) {
        const int64_t at = (n / kStripRows * m.kgs + place.kg) * m.kg_bytes + n % kStripRows * 4 + i % 4;
        q[n * q_stride + place.k0 + i] = static_cast<int8_t>(digit_of(w->format, w->data + at, i) - offset);
      }
  });
  return MOTE_OK;
}
}
