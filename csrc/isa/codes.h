// Codes of int2, int3 and int6 to the bytes of int8, which every ISA multiplies: one loop in plain C++, over words of 8
// codes, that each ISA's flags turn into its own vectors. Include it from one file of each ISA; hence the nameless
// namespace.
#pragma once
#include <cstdint>
#include <cstring>

#include "format.h"

namespace mote {
namespace {

constexpr int64_t kWords = kGroupBytes / 8;
constexpr int64_t kCodesAhead = 2048;  // bytes ahead of the stream of weights that are asked for

constexpr uint64_t bytes_like(uint64_t byte) { return byte * 0x0101010101010101u; }

inline uint64_t word(const uint8_t *from, int64_t i) {
  uint64_t v;
  std::memcpy(&v, from + 8 * i, sizeof v);
  return v;
}

// Plane P of a k-group, 4 inputs of 64 rows, as bytes code + kBias: the low kLow bits of a code lie beside those of its
// neighbours in block P / (8 / kLow), the other kTop bits, if any, in the third block.
template <int kLow, int kTop, int kBias, int P>
inline void widen_plane(const uint8_t *__restrict data, uint8_t *__restrict tile) {
  constexpr int kEach = 8 / kLow, kUp = kLow - P * kTop;  // how far left the top bits go
  const uint8_t *low = data + P / kEach * kGroupBytes, *top = data + 2 * kGroupBytes;
  for (int64_t i = 0; i < kWords; ++i) {
    uint64_t v = word(low, i) >> (P % kEach * kLow) & bytes_like((1 << kLow) - 1);
    if constexpr (kTop > 0) {
      const uint64_t t = kUp >= 0 ? word(top, i) << (kUp >= 0 ? kUp : 0) : word(top, i) >> (kUp < 0 ? -kUp : 0);
      v |= t & bytes_like(((1 << kTop) - 1) << kLow);
    }
    v += bytes_like(kBias);
    std::memcpy(tile + P * kGroupBytes + 8 * i, &v, sizeof v);
  }
}

template <int kLow, int kTop, int kBias, int... P>
inline void widen_planes(const uint8_t *data, int64_t groups, uint8_t *tile) {
  constexpr int64_t kBytes = (kTop > 0 ? 3 : 1) * kGroupBytes;
  for (; groups > 0; --groups, data += kBytes, tile += sizeof...(P) * kGroupBytes) {
    for (int64_t line = 0; line < kBytes; line += 64) __builtin_prefetch(data + kCodesAhead + line);
    (widen_plane<kLow, kTop, kBias, P>(data, tile), ...);
  }
}

// `groups` k-groups at data as those of an int8 matrix at tile.
inline void widen_codes(int32_t format, const uint8_t *data, int64_t groups, uint8_t *tile) {
  if (format == MOTE_INT2) {
    widen_planes<2, 0, 128 - 2, 0, 1, 2, 3>(data, groups, tile);
  } else if (format == MOTE_INT3) {
    widen_planes<2, 1, 128 - 4, 0, 1, 2, 3, 4, 5, 6, 7>(data, groups, tile);
  } else {
    widen_planes<4, 2, 128 - 32, 0, 1, 2, 3>(data, groups, tile);
  }
}
}  // namespace
}  // namespace mote
