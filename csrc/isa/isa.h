// What a file of csrc/isa provides: exact dot products of one strip with many tokens.
#pragma once
#include <cstdint>

namespace mote {

struct Isa {
  const char *name;
  bool (*usable)();  // does this CPU, under this operating system, run it?
  // acc_TR[t * 64 + r] = sum over `groups` k-groups of digit[r] * x[t], digits 0..2 (weight + 1): the caller takes the
  // sum of x away. strip: groups * 256 bytes of any alignment; x: rows of groups * per_group int8 at x_stride.
  void (*dot)(int32_t format, const uint8_t *strip, int64_t groups, const int8_t *x, int64_t x_stride, int64_t tokens,
              int32_t *acc_TR);
};

extern const Isa kScalar;
#if defined(MOTE_X86)
extern const Isa kAvx2, kAvx512Vnni;
#endif

// The one in use, or nullptr with an error recorded.
const Isa *chosen_isa();
}  // namespace mote
