// Geometry of the packed order (docs/reference/packed-format.md).
//
// A strip is 64 rows; along K it is a run of k-groups, 256 bytes each: byte (row % 64) * 4 + b of a k-group holds the
// digits (w + 1) of inputs k0 + p * 4 + b, p = 0..: 2-bit sum digit << 2p (16 inputs), base-3 sum digit * 3^p (20).
// A scale group starts on a fresh k-group; the digits of padding are 1, weight 0.
#pragma once
#include <cstdint>

#include "mote.h"

namespace mote {

constexpr int64_t kStripRows = 64;
constexpr int64_t kGroupBytes = 256;

struct Geometry {
  int64_t per_group;   // inputs of one k-group: 16 or 20
  int64_t strips;      // ceil(N / 64)
  int64_t group;       // inputs per scale group; K when there are none
  int64_t scales;      // scale groups along K (1 when there are none)
  int64_t kgs_full;    // k-groups of a whole scale group
  int64_t kgs;         // k-groups of a strip
  int64_t bytes;

  // First input, number of inputs and number of k-groups of scale group g; it starts at k-group g * kgs_full.
  int64_t first(int64_t g) const { return g * group; }
  int64_t inputs(int64_t g, int64_t cols) const { return g + 1 < scales ? group : cols - first(g); }
  int64_t kgs_of(int64_t g, int64_t cols) const { return (inputs(g, cols) + per_group - 1) / per_group; }
};

// Checks format and sizes; MOTE_OK fills *geometry.
int measure(int32_t format, int64_t rows, int64_t cols, int64_t group, Geometry *geometry);
// The same for a matrix with its data.
int measure(const mote_matrix *w, Geometry *geometry);

inline uint8_t pack_digit(int32_t format, int p, int digit) {
  constexpr int power[5] = {1, 3, 9, 27, 81};
  return static_cast<uint8_t>(format == MOTE_2BIT ? digit << (2 * p) : digit * power[p]);
}
inline int unpack_digit(int32_t format, int p, uint8_t byte) {
  constexpr int power[5] = {1, 3, 9, 27, 81};
  return format == MOTE_2BIT ? (byte >> (2 * p)) & 3 : byte / power[p] % 3;
}
}  // namespace mote
