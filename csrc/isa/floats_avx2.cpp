#include "isa/float_kernels.h"
#include "isa/lanes_avx2.h"

namespace mote {
const FloatKernels kAvx2Floats = kFloatsOver<Avx2Lanes>;
}  // namespace mote
