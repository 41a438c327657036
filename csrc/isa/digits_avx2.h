// Digits of the ternary codecs in registers of 32 bytes, for the ISAs with 256-bit integers. Include it from files
// compiled for AVX2 or more; hence static.
#pragma once
#include "format.h"
#include "isa/avx2.h"

namespace mote::avx2 {

static inline V digit_2bit(V bytes, int p) {
  return _mm256_and_si256(_mm256_srli_epi16(bytes, 2 * p), _mm256_set1_epi8(3));
}

// Looks up the low nibble of each byte.
static inline V look_up(V bytes, __m128i table) {
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), bytes);
}
// Of v up to 8.
static inline V quotient_by_3(V v) {
  return look_up(v, _mm_setr_epi8(0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0));
}
static inline V remainder_by_3(V v) {
  return look_up(v, _mm_setr_epi8(0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0));
}
static inline V minus(V v, int amount) { return _mm256_sub_epi8(v, _mm256_set1_epi8(static_cast<char>(amount))); }

// The five base-3 digits of each byte, d0 being worth 1: v = 27 high + 9 middle + low, high and low of two digits.
struct Base3Digits {
  V d0, d1, d2, d3, d4;
};
static inline Base3Digits base3_digits(V v) {
  // high = v * 2428 / 65536 for every v < 243, of the even and the odd bytes.
  const V factor = _mm256_set1_epi16(2428), even = _mm256_set1_epi16(0x00ff), odd = _mm256_set1_epi16(-256);
  const V high = _mm256_or_si256(_mm256_mulhi_epu16(_mm256_and_si256(v, even), factor),
                                 _mm256_and_si256(_mm256_mulhi_epu16(_mm256_and_si256(v, odd), factor), odd));
  const __m128i times_27 = _mm_setr_epi8(0, 27, 54, 81, 108, -121, -94, -67, -40, 0, 0, 0, 0, 0, 0, 0);  // modulo 256
  const V rest = _mm256_sub_epi8(v, look_up(high, times_27));
  // A difference below 0 wraps to above all that is not.
  const V low = _mm256_min_epu8(_mm256_min_epu8(rest, minus(rest, 9)), minus(rest, 18));
  const V middle = _mm256_sub_epi8(rest, low);  // 0, 9 or 18, whose low nibbles are 0, 9 and 2
  const __m128i ninth = _mm_setr_epi8(0, 0, 2, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0);
  return {remainder_by_3(low), quotient_by_3(low), look_up(middle, ninth), remainder_by_3(high), quotient_by_3(high)};
}

template <int32_t F>
constexpr int64_t kQuadsOf = F == MOTE_2BIT ? 4 : 5;  // of a k-group

// Digits of k-groups into a tile, [quad][64 rows][4].
template <int32_t F>
static inline void unpack_digits(const uint8_t *strip, int64_t groups, uint8_t *tile) {
  for (int64_t g = 0; g < groups; ++g, tile += kQuadsOf<F> * kGroupBytes)
    for (int64_t r = 0; r < kGroupBytes; r += 32) {
      const V bytes = load(strip + g * kGroupBytes + r);
      if constexpr (F == MOTE_2BIT) {
        for (int p = 0; p < 4; ++p) store(tile + p * kGroupBytes + r, digit_2bit(bytes, p));
      } else {
        const Base3Digits digits = base3_digits(bytes);
        store(tile + r, digits.d0);
        store(tile + 1 * kGroupBytes + r, digits.d1);
        store(tile + 2 * kGroupBytes + r, digits.d2);
        store(tile + 3 * kGroupBytes + r, digits.d3);
        store(tile + 4 * kGroupBytes + r, digits.d4);
      }
    }
}

// acc plus one k-group of 8 rows for one token, decoded in registers; kAdd(acc, digits, x) multiplies quads and adds.
template <int32_t F, V (*kAdd)(V, V, V)>
static inline V multiply_group(V acc, V bytes, V x0, V x1, V x2, V x3, V x4) {
  if constexpr (F == MOTE_2BIT) {
    acc = kAdd(acc, digit_2bit(bytes, 0), x0);
    acc = kAdd(acc, digit_2bit(bytes, 1), x1);
    acc = kAdd(acc, digit_2bit(bytes, 2), x2);
    return kAdd(acc, digit_2bit(bytes, 3), x3);
  } else {
    const Base3Digits digits = base3_digits(bytes);
    acc = kAdd(acc, digits.d4, x4);
    acc = kAdd(acc, digits.d3, x3);
    acc = kAdd(acc, digits.d2, x2);
    acc = kAdd(acc, digits.d1, x1);
    return kAdd(acc, digits.d0, x0);
  }
}
}  // namespace mote::avx2
