#include "isa/float_kernels.h"
#include "isa/lanes_neon.h"

namespace mote {
const FloatKernels kNeonFloats = kFloatsOver<NeonLanes>;
}  // namespace mote
