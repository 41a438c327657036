// Integers of every width: int4 and 8 bits as each ISA multiplies them; int2, int3 and int6 widened into tiles of int8;
// and what a grid that is not symmetric adds.
//
// With zero points a weight is scale * (code - zero) = scale * (code - offset) + scale * (offset - zero). The first part is
// the symmetric product; the second is the same for all inputs of a group, so that it takes only the sums of x.
// Legend: T tokens, G scale groups, R the 64 rows of a strip.
#include "widths.h"

#include <algorithm>

#include "format.h"

namespace mote {
namespace {

constexpr int64_t kTileInputs = 256;  // of one tile, unless a single scale group has more
constexpr int64_t kTileGroups = kTileInputs / 16;
constexpr int64_t kShiftGroups = 16;  // whose shifts, 4 KiB, are made at once

// Scale groups first .. first + count - 1 of several tokens, side by side; of one token they already are.
struct Part {
  float s[kTokenBlock * kTileGroups];
  int32_t sum[kTokenBlock * kTileGroups];

  GroupedInput of(const ScaledStrip &w, const GroupedInput &x, int64_t tokens, int64_t first, int64_t count) {
    const int8_t *start = x.x + first * w.group;
    if (tokens == 1) return {start, x.stride, x.s_TG + first, x.sum_TG + first};
    for (int64_t t = 0; t < tokens; ++t) {
      std::copy_n(x.s_TG + t * w.scale_groups + first, count, s + t * count);
      std::copy_n(x.sum_TG + t * w.scale_groups + first, count, sum + t * count);
    }
    return {start, x.stride, s, sum};
  }
};

void widened(const Isa &isa, const ScaledStrip &w, const GroupedInput &x, int64_t tokens, float *y_TR) {
  alignas(64) uint8_t tile[kMaxScaledGroup / 4 * kGroupBytes];
  Part part;
  const int64_t per_group = inputs_per_group(w.format), bytes = kgroup_bytes(w.format);
  const int64_t groups = std::max<int64_t>(1, kTileInputs / w.group);
  const uint8_t *data = w.data;
  for (int64_t first = 0; first < w.scale_groups; first += groups) {
    const int64_t count = std::min(groups, w.scale_groups - first);
    const int64_t inputs = std::min(count * w.group, w.cols - first * w.group), kgs = ceil_div(inputs, per_group);
    isa.widen(w.format, data, kgs, tile);
    data += kgs * bytes;
    ScaledStrip wide = {tile, w.scale_GR + first * kStripRows, inputs, w.group, count, MOTE_INT8};
    wide.add = first > 0;
    isa.dot_scaled(wide, part.of(w, x, tokens, first, count), tokens, y_TR);
  }
}

// y = y + (float(sum x) * s) * (scale * (offset - zero)), scale group after scale group.
void add_zero_points(const Isa &isa, const ScaledStrip &w, const GroupedInput &x, int64_t tokens, float *y_TR) {
  alignas(64) float shift_GR[kShiftGroups * kStripRows];
  const auto offset = static_cast<float>(digit_offset(w.format));
  for (int64_t first = 0; first < w.scale_groups; first += kShiftGroups) {
    const int64_t count = std::min(kShiftGroups, w.scale_groups - first);
    const uint16_t *scale = w.scale_GR + first * kStripRows, *zero = w.zero_GR + first * kStripRows;
    for (int64_t i = 0; i < count * kStripRows; ++i)
      shift_GR[i] = bf16_to_float(scale[i]) * (offset - bf16_to_float(zero[i]));
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t g = 0; g < count; ++g) {
        const int64_t at = t * w.scale_groups + first + g;
        isa.floats->add_scaled(static_cast<float>(x.sum_TG[at]) * x.s_TG[at], shift_GR + g * kStripRows, kStripRows,
                               y_TR + t * kStripRows);
      }
  }
}
}  // namespace

void dot_integers(const Isa &isa, const ScaledStrip &w, const GroupedInput &x, int64_t tokens, float *y_TR) {
  is_widened(w.format) ? widened(isa, w, x, tokens, y_TR) : isa.dot_scaled(w, x, tokens, y_TR);
  if (w.zero_GR) add_zero_points(isa, w, x, tokens, y_TR);
}
}  // namespace mote
