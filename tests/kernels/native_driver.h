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
  return {data, bytes, nullptr, 0, nullptr, rows, cols, group, format, group ? MOTE_GROUP : MOTE_TENSOR};
}

// Sizes that must be refused; how many were.
int64_t refusals();
// Products whose bits must be those of the plain kernels on every ISA; how many were.
int64_t compare_isas();
// Feed-forward layers and a decoder, likewise; how many were.
int64_t compare_layers();
