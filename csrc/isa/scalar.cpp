// The plain kernel: one k-group's digits of one row at a time. It is the C++ specification of the others.
#include <cstring>

#include "format.h"
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

bool usable() { return true; }
}  // namespace

const Isa kScalar = {"scalar", usable, dot};
}  // namespace mote
