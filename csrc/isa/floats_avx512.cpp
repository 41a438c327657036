#include "isa/float_kernels.h"
#include "isa/lanes_avx512.h"

namespace mote {
const FloatKernels kAvx512Floats = kFloatsOver<Avx512Lanes>;
}  // namespace mote
