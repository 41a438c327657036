// Where a scale group of a strip of integers lies; for files compiled for different ISAs, hence static.
#pragma once
#include <algorithm>

#include "isa/isa.h"

namespace mote {

struct ScaleGroup {
  int64_t k0, quads;  // first input; ceil(inputs / 4)
};
static inline ScaleGroup scale_group(const ScaledStrip &w, int64_t g) {
  const int64_t k0 = g * w.group;
  return {k0, (std::min(w.group, w.cols - k0) + 3) / 4};
}
}  // namespace mote
