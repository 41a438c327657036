// Products with integer matrices of every width, with and without zero points.
#pragma once
#include "isa/isa.h"

namespace mote {

constexpr int64_t kTokenBlock = 240;  // tokens of one product of a strip: accumulators of 60 KiB, beside weights in L2

// y_TR[t * 64 + r] as mote_linear_f32 says, for at most kTokenBlock tokens.
void dot_integers(const Isa &isa, const ScaledStrip &w, const GroupedInput &x, int64_t tokens, float *y_TR);
}  // namespace mote
