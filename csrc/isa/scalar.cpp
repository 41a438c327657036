// The plain kernel: one digit of one row at a time. It is the C++ specification of the others.
#include <algorithm>
#include <cstring>

#include "format.h"
#include "isa/codes.h"
#include "isa/isa.h"

namespace mote {
namespace {

void dot(int32_t format, const uint8_t *strip, int64_t groups, const int8_t *x, int64_t x_stride, int64_t tokens,
         int32_t *acc_TR) {
  const int per_group = format == MOTE_2BIT ? 16 : 20;
  std::memset(acc_TR, 0, static_cast<size_t>(tokens * kStripRows) * sizeof *acc_TR);
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t r = 0; r < kStripRows; ++r) {
      int16_t digit[20];
      for (int i = 0; i < per_group; ++i)
        digit[i] = static_cast<int16_t>(unpack_digit(format, i / 4, strip[g * kGroupBytes + r * 4 + i % 4]));
      for (int64_t t = 0; t < tokens; ++t) {
        const int8_t *row = x + t * x_stride + g * per_group;
        int32_t sum = 0;
        for (int i = 0; i < per_group; ++i) sum += digit[i] * row[i];
        acc_TR[t * kStripRows + r] += sum;
      }
    }
}

// y = y + float(acc) * (scale * s), scale group after scale group, each operation rounded once.
void dot_scaled(const ScaledStrip &w, const GroupedInput &x, int64_t tokens, float *y_TR) {
  const int64_t per_group = w.format == MOTE_INT4 ? 8 : 4;
  const int offset = digit_offset(w.format);
  const uint8_t *data = w.data;
  if (!w.add) std::fill_n(y_TR, tokens * kStripRows, 0.0f);
  for (int64_t g = 0; g < w.scale_groups; ++g) {
    const int64_t k0 = g * w.group, n = std::min(w.group, w.cols - k0), stored = (n + per_group - 1) / per_group;
    for (int64_t r = 0; r < kStripRows; ++r) {
      const float scale = bf16_to_float(w.scale_GR[g * kStripRows + r]);
      for (int64_t t = 0; t < tokens; ++t) {
        int32_t acc = 0;
        for (int64_t k = 0; k < n; ++k) {
          const uint8_t byte = data[k / per_group * kGroupBytes + r * 4 + k % 4];
          acc += (unpack_digit(w.format, static_cast<int>(k % per_group / 4), byte) - offset) * x.x[t * x.stride + k0 + k];
        }
        float *y = y_TR + t * kStripRows + r;
        *y = *y + static_cast<float>(acc) * (scale * x.s_TG[t * w.scale_groups + g]);
      }
    }
    data += stored * kGroupBytes;
  }
}

bool usable() { return true; }
}  // namespace

const Isa kScalar = {"scalar", usable, dot, dot_scaled, widen_codes, &kScalarFloats};
}  // namespace mote
