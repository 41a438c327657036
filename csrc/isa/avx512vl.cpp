// 256-bit vpdpbusd as it came first, with AVX512-VNNI: for servers that lack what avx512vnni.cpp asks for beside it
// (VBMI: Intel's Cascade and Cooper Lake). Wherever the 512-bit kernels run these run too, which is how avxvnni.cpp's
// are tested on processors that lack its encoding.
#define VNNI256 avx512vl
#define DPBUSD _mm256_dpbusd_epi32
#include "isa/vnni256.h"

namespace mote {
namespace {
bool usable() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}
}  // namespace
const Isa kAvx512Vl = {"avx512vl", usable, avx512vl::dot, avx512vl::dot_scaled, widen_codes, &kAvx2Floats};
}  // namespace mote
