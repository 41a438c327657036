// 256-bit vpdpbusd as processors without AVX512 have it: Intel's for laptops and desktops since 2021, AMD's Zen 5.
#define VNNI256 avxvnni
#define DPBUSD _mm256_dpbusd_avx_epi32
#include "isa/vnni256.h"

namespace mote {
namespace {
bool usable() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("avxvnni"); }
}  // namespace
const Isa kAvxVnni = {"avxvnni", usable, avxvnni::dot, avxvnni::dot_scaled, widen_codes, &kAvx2Floats};
}  // namespace mote
