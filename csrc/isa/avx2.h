// What the AVX2 files share. Include it from files compiled for AVX2, or more, only.
#pragma once
#include <immintrin.h>

#include <cstring>

#include "isa/isa.h"
#include "isa/prefetch.h"

namespace mote::avx2 {

using V = __m256i;

static inline V load(const void *p) { return _mm256_loadu_si256(static_cast<const V *>(p)); }
static inline void store(void *p, V v) { _mm256_storeu_si256(static_cast<V *>(p), v); }
// Four bytes, such as the int8 of one quad of inputs, in every lane.
static inline V broadcast(const void *x) {
  int32_t quad;
  std::memcpy(&quad, x, sizeof quad);
  return _mm256_set1_epi32(quad);
}
// The sum stays in its register: GCC 12 copies that of _mm256_add_epi16, a third of the instructions of an inner loop.
static inline V multiply_add(V acc, V digits, V x) {
  asm("vpaddw %1, %0, %0" : "+x"(acc) : "x"(_mm256_maddubs_epi16(digits, x)));
  return acc;
}
static inline V widen(V acc16) { return _mm256_madd_epi16(acc16, _mm256_set1_epi16(1)); }
// 8 scales in bf16.
static inline __m256 scales(const uint16_t *bf16) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i *>(bf16));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

void dot_scaled(const ScaledStrip &w, const GroupedInput &x, int64_t tokens, float *y_TR);
}  // namespace mote::avx2
