// AVX512 for machines without it: found before the compiler's own immintrin.h, this turns AVX512 intrinsics into those
// of SIMDe, which need AVX2 and FMA. At the end, those that SIMDe 0.7.4 lacks.
#pragma once
#include_next <immintrin.h>
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

inline __m256i mote_half(simde__m512i a, int high) {
  return high ? simde_mm512_extracti64x4_epi64(a, 1) : simde_mm512_castsi512_si256(a);
}
inline simde__m512i mote_join(__m256i low, __m256i high) {
  return simde_mm512_inserti64x4(simde_mm512_castsi256_si512(low), high, 1);
}

#define _mm512_cvtepu16_epi32 mote_cvtepu16_epi32
inline simde__m512i mote_cvtepu16_epi32(__m256i a) {
  return mote_join(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(a)),
                   _mm256_cvtepu16_epi32(_mm256_extracti128_si256(a, 1)));
}
#define _mm512_extractf32x8_ps mote_extractf32x8_ps
inline __m256 mote_extractf32x8_ps(simde__m512 a, int high) {
  return _mm256_castsi256_ps(mote_half(simde_mm512_castps_si512(a), high));
}
#define _mm512_cvtps_epi32 mote_cvtps_epi32
inline simde__m512i mote_cvtps_epi32(simde__m512 a) {
  return mote_join(_mm256_cvtps_epi32(simde_mm512_castps512_ps256(a)),
                   _mm256_cvtps_epi32(mote_extractf32x8_ps(a, 1)));
}
#define _mm512_cvtepi32_epi8 mote_cvtepi32_epi8
inline __m128i mote_cvtepi32_epi8(simde__m512i a) {
  alignas(64) int32_t wide[16];
  alignas(16) int8_t narrow[16];
  simde_mm512_storeu_si512(wide, a);
  for (int i = 0; i < 16; ++i) narrow[i] = static_cast<int8_t>(wide[i]);
  return _mm_load_si128(reinterpret_cast<const __m128i *>(narrow));
}
#undef _mm512_srai_epi32
#define _mm512_srai_epi32 mote_srai_epi32
inline simde__m512i mote_srai_epi32(simde__m512i a, int bits) {
  return mote_join(_mm256_srai_epi32(mote_half(a, 0), bits), _mm256_srai_epi32(mote_half(a, 1), bits));
}
#define _mm512_cvtepi32_ps mote_cvtepi32_ps
inline simde__m512 mote_cvtepi32_ps(simde__m512i a) {
  const simde__m512i bits = mote_join(_mm256_castps_si256(_mm256_cvtepi32_ps(mote_half(a, 0))),
                                      _mm256_castps_si256(_mm256_cvtepi32_ps(mote_half(a, 1))));
  return simde_mm512_castsi512_ps(bits);
}
