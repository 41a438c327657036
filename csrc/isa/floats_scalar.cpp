#include "isa/float_kernels.h"
#include "isa/lanes_scalar.h"

namespace mote {
const FloatKernels kScalarFloats = kFloatsOver<ScalarLanes>;
}  // namespace mote
