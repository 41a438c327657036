// Geometry of the packed order (docs/reference/packed-format.md).
//
// A strip is 64 rows; along K it is a run of k-groups, 256 bytes each: byte (row % 64) * 4 + b of a k-group holds the
// digits of inputs k0 + p * 4 + b, p = 0..: 2-bit sum digit << 2p (16 inputs), base-3 sum digit * 3^p (20), int4 sum
// digit << 4p (8), int8 the digit itself (4), int2 as 2-bit. int3 (32 inputs) and int6 (16) cut digits into bits, which lie
// in three blocks of 256 bytes (digit_of). digit = weight + digit_offset. A scale group starts on a fresh k-group; padding
// is weight 0. bf16 and f32 lie row-major; of their geometry only strips (blocks of 64 rows) and bytes count.
#pragma once
#include <cstdint>
#include <cstring>

#include "mote.h"

namespace mote {

constexpr int64_t kStripRows = 64;
constexpr int64_t kGroupBytes = 256;  // of a k-group, or of each of its three blocks

// Far above any model, and as far as an int32 accumulator reaches: of digits at four times their value, it is a sum of
// at most 4 * 2 * 128 * 2^22 / 2 = 2^31 (half of the inputs; 81 times the value may wrap, which is exact).
constexpr int64_t kMaxCols = int64_t{1} << 22;

// Integers: an int32 holds the product of a group, 128 * 255 * 1024, and an fp32 the signed one exactly.
constexpr int64_t kMaxScaledGroup = 1024;

constexpr int64_t ceil_div(int64_t n, int64_t by) { return (n + by - 1) / by; }
constexpr int64_t round_up(int64_t n, int64_t to) { return ceil_div(n, to) * to; }

inline bool is_ternary(int32_t format) { return format == MOTE_2BIT || format == MOTE_BASE3; }
inline bool is_widened(int32_t format) { return format >= MOTE_INT2 && format <= MOTE_INT6; }  // to int8, to be multiplied
inline bool is_scaled(int32_t format) {
  return format == MOTE_INT4 || format == MOTE_INT8 || (format >= MOTE_INT2 && format <= MOTE_UINT8);
}
inline bool is_float(int32_t format) { return format == MOTE_BF16 || format == MOTE_F32; }

inline int64_t inputs_per_group(int32_t format) {
  switch (format) {
    case MOTE_2BIT: case MOTE_INT2: case MOTE_INT6: return 16;
    case MOTE_BASE3: return 20;
    case MOTE_INT3: return 32;
    case MOTE_INT4: return 8;
    default: return 4;
  }
}
inline int64_t kgroup_bytes(int32_t format) {
  return (format == MOTE_INT3 || format == MOTE_INT6 ? 3 : 1) * kGroupBytes;
}

struct Geometry {
  int64_t per_group;   // inputs of one k-group: 16, 20, 32, 8 or 4
  int64_t kg_bytes;    // bytes of one k-group: 256 or 768
  int64_t strips;      // ceil(N / 64)
  int64_t group;       // inputs per scale group; K when there are none
  int64_t scales;      // scale groups along K (1 when there are none)
  int64_t kgs_full;    // k-groups of a whole scale group
  int64_t kgs;         // k-groups of a strip
  int64_t bytes;

  // First input, number of inputs and number of k-groups of scale group g; it starts at k-group g * kgs_full.
  int64_t first(int64_t g) const { return g * group; }
  int64_t inputs(int64_t g, int64_t cols) const { return g + 1 < scales ? group : cols - first(g); }
  int64_t kgs_of(int64_t g, int64_t cols) const { return ceil_div(inputs(g, cols), per_group); }
  int64_t strip_bytes() const { return kgs * kg_bytes; }
};

// Checks format and sizes; MOTE_OK fills *geometry.
int measure(int32_t format, int64_t rows, int64_t cols, int64_t group, Geometry *geometry);
// The same for a matrix with its data.
int measure(const mote_matrix *w, Geometry *geometry);

// Whether `n` rows at a stride, in elements of up to 8 bytes, can be addressed at all.
inline bool fits(int64_t n, int64_t stride) { return n < 1 || stride <= (int64_t{1} << 59) / n; }

inline int digit_offset(int32_t format) {
  switch (format) {
    case MOTE_INT2: return 2;
    case MOTE_INT3: return 4;
    case MOTE_INT4: return 8;
    case MOTE_INT6: return 32;
    case MOTE_INT8: case MOTE_UINT8: return 128;
    default: return 1;
  }
}
inline uint8_t pack_digit(int32_t format, int p, int digit) {
  constexpr int power[5] = {1, 3, 9, 27, 81};
  if (format == MOTE_BASE3) return static_cast<uint8_t>(digit * power[p]);
  return static_cast<uint8_t>(digit << (format == MOTE_INT4 ? 4 : 2) * p);
}
inline int unpack_digit(int32_t format, int p, uint8_t byte) {
  constexpr int power[5] = {1, 3, 9, 27, 81};
  if (format == MOTE_BASE3) return byte / power[p] % 3;
  if (format == MOTE_2BIT || format == MOTE_INT2) return (byte >> (2 * p)) & 3;
  return format == MOTE_INT4 ? (byte >> (4 * p)) & 15 : byte;
}
// Digit of input i of a k-group; at: the row's bytes for inputs i modulo 4. Low bits of int3 lie 4 in a byte of the first
// two blocks, of int6 2; the others lie in the third block.
inline int digit_of(int32_t format, const uint8_t *at, int64_t i) {
  const int p = static_cast<int>(i / 4);
  if (format == MOTE_INT3)
    return (at[p / 4 * kGroupBytes] >> (p % 4 * 2) & 3) | (at[2 * kGroupBytes] >> p & 1) << 2;
  if (format == MOTE_INT6)
    return (at[p / 2 * kGroupBytes] >> (p % 2 * 4) & 15) | (at[2 * kGroupBytes] >> (p * 2) & 3) << 4;
  return unpack_digit(format, p, *at);
}
// The reverse; adds to bytes that were 0.
inline void put_digit(int32_t format, uint8_t *at, int64_t i, int digit) {
  const int p = static_cast<int>(i / 4), low = format == MOTE_INT3 ? 2 : 4, each = 8 / low;
  if (format != MOTE_INT3 && format != MOTE_INT6) {
    *at = static_cast<uint8_t>(*at + pack_digit(format, p, digit));
    return;
  }
  uint8_t *bottom = at + p / each * kGroupBytes, *top = at + 2 * kGroupBytes;
  *bottom = static_cast<uint8_t>(*bottom | (digit & ((1 << low) - 1)) << (p % each * low));
  *top = static_cast<uint8_t>(*top | digit >> low << (p * low / 2));
}
inline float bf16_to_float(uint16_t bits) {
  const uint32_t wide = uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}
}  // namespace mote
