// What the C++ drivers of the native library share.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

#include "mote.h"

// A heap block of exactly n numbers, so that the sanitizer sees one read or written beyond them.
template <class T>
std::unique_ptr<T[]> block(int64_t n) {
  return std::unique_ptr<T[]>(new T[static_cast<size_t>(n)]);
}

[[noreturn]] inline void stop(const std::string &what) {
  std::printf("FAILED: %s (%s)\n", what.c_str(), mote_last_error());
  std::exit(1);
}

// A matrix without scales or bias.
inline mote_matrix matrix(const uint8_t *data, int64_t bytes, int64_t rows, int64_t cols, int64_t group,
                          int32_t format) {
  return {data, bytes, nullptr, 0, nullptr, rows, cols, group, format, group ? MOTE_GROUP : MOTE_TENSOR,
          nullptr, 0};
}

// Formats with bf16 scales per group: what a weight may be, and what their groups are multiples of.
inline bool is_integers(int32_t format) {
  return format == MOTE_INT4 || format == MOTE_INT8 || (format >= MOTE_INT2 && format <= MOTE_UINT8);
}
inline int highest(int32_t format) {
  switch (format) {
    case MOTE_INT3: return 3;
    case MOTE_INT4: return 7;
    case MOTE_INT6: return 31;
    case MOTE_INT8: case MOTE_UINT8: return 127;
    default: return 1;
  }
}
inline int lowest(int32_t format) { return is_integers(format) && format != MOTE_INT8 ? -highest(format) - 1 : -highest(format); }
inline int64_t group_step(int32_t format) {
  return format == MOTE_INT3 ? 32 : format == MOTE_INT2 || format == MOTE_INT6 ? 16 : 8;
}

// Sizes that must be refused; how many were.
int64_t refusals();
// Products whose bits must be those of the plain kernels on every ISA; how many were.
int64_t compare_isas();
// Feed-forward layers and a decoder, likewise; how many were.
int64_t compare_layers();
