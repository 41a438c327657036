// The table of float kernels over one type of lanes.
#pragma once
#include "isa/float_attend.h"
#include "isa/float_dots.h"
#include "isa/float_rows.h"
#include "isa/isa.h"

namespace mote {
namespace {

template <class A>
constexpr FloatKernels kFloatsOver = {rows_dot<A>,   quantize<A>, rms_norm<A>, rotate<A>,     silu_multiply<A>,
                                      add_scaled<A>, store_kv<A>, attend<A>,   attend_scratch};
}  // namespace
}  // namespace mote
