// Digits of the ternary codecs in registers of 32 bytes, for the ISAs with 256-bit integers. Include it from files
// compiled for AVX2 or more; hence static.
#pragma once
#include "format.h"
#include "isa/avx2.h"

namespace mote::avx2 {

static inline V digit_2bit(V bytes, int p) {
  return _mm256_and_si256(_mm256_srli_epi16(bytes, 2 * p), _mm256_set1_epi8(3));
}

// Takes the top base-3 digit out of *rest (its place is worth `power`) and returns it. min(v, v - power) subtracts only
// where v >= power, since otherwise the difference wraps above v; twice covers the digit 2. The difference is digit *
// power, whose low nibble names the digit for all of 3, 9, 27, 81 (of 162 bit 7 must be cleared for the shuffle).
static inline V take_digit(V *rest, int power) {
  const V step = _mm256_set1_epi8(static_cast<char>(power));
  V left = _mm256_min_epu8(*rest, _mm256_sub_epi8(*rest, step));
  left = _mm256_min_epu8(left, _mm256_sub_epi8(left, step));
  V multiple = _mm256_sub_epi8(*rest, left);
  if (power == 81) multiple = _mm256_and_si256(multiple, _mm256_set1_epi8(0x7f));
  *rest = left;
  const V digit_of = _mm256_setr_epi8(0, 1, 2, 1, 0, 0, 2, 0, 0, 1, 0, 1, 0, 0, 0, 0,   //
                                      0, 1, 2, 1, 0, 0, 2, 0, 0, 1, 0, 1, 0, 0, 0, 0);
  return _mm256_shuffle_epi8(digit_of, multiple);
}

template <int32_t F>
constexpr int64_t kQuadsOf = F == MOTE_2BIT ? 4 : 5;  // of a k-group

// Digits of k-groups into a tile, [quad][64 rows][4].
template <int32_t F>
static inline void unpack_digits(const uint8_t *strip, int64_t groups, uint8_t *tile) {
  for (int64_t g = 0; g < groups; ++g, tile += kQuadsOf<F> * kGroupBytes)
    for (int64_t r = 0; r < kGroupBytes; r += 32) {
      V rest = load(strip + g * kGroupBytes + r);
      if constexpr (F == MOTE_2BIT) {
        for (int p = 0; p < 4; ++p) store(tile + p * kGroupBytes + r, digit_2bit(rest, p));
      } else {
        store(tile + 4 * kGroupBytes + r, take_digit(&rest, 81));
        store(tile + 3 * kGroupBytes + r, take_digit(&rest, 27));
        store(tile + 2 * kGroupBytes + r, take_digit(&rest, 9));
        store(tile + 1 * kGroupBytes + r, take_digit(&rest, 3));
        store(tile + r, rest);
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
    acc = kAdd(acc, take_digit(&bytes, 81), x4);
    acc = kAdd(acc, take_digit(&bytes, 27), x3);
    acc = kAdd(acc, take_digit(&bytes, 9), x2);
    acc = kAdd(acc, take_digit(&bytes, 3), x1);
    return kAdd(acc, bytes, x0);
  }
}
}  // namespace mote::avx2
