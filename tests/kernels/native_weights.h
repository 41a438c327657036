// Random matrices of every format for the C++ drivers, each buffer exactly as large as mote.h promises to read.
#pragma once
#include <cstring>
#include <random>
#include <vector>

#include "native_driver.h"

// A matrix and what its pointers point to. Moving one keeps the addresses, copying it would not.
struct Weights {
  std::vector<uint8_t> data;
  std::vector<float> bias, scale_f32;
  std::vector<uint16_t> scale_bf16, zero_bf16;
  mote_matrix w{};

  Weights() = default;
  Weights(Weights &&) = default;
};

inline float normal(std::mt19937 &rng, float scale) { return std::normal_distribution<float>(0.0f, scale)(rng); }

inline std::vector<float> normals(std::mt19937 &rng, int64_t n, float scale) {
  std::vector<float> values(static_cast<size_t>(n));
  for (float &value : values) value = normal(rng, scale);
  return values;
}

inline void fill_data(std::mt19937 &rng, Weights *s) {
  mote_matrix &w = s->w;
  const int64_t n = w.rows, k = w.cols;
  w.bytes = mote_packed_bytes(w.format, n, k, w.group);
  if (w.bytes < 0) stop("packed_bytes");
  s->data.resize(static_cast<size_t>(w.bytes));
  if (w.format == MOTE_BF16 || w.format == MOTE_F32) {
    for (int64_t i = 0; i < n * k; ++i) {
      const float value = normal(rng, 0.1f);
      const auto *bytes = reinterpret_cast<const uint8_t *>(&value);  // bf16: the upper half
      const size_t width = w.format == MOTE_F32 ? 4 : 2;
      std::memcpy(s->data.data() + static_cast<size_t>(i) * width, bytes + 4 - width, width);
    }
  } else {
    const int low = lowest(w.format), high = highest(w.format);
    std::vector<int8_t> q(static_cast<size_t>(n * k));
    for (int8_t &v : q) v = static_cast<int8_t>(static_cast<int>(rng() % static_cast<unsigned>(high - low + 1)) + low);
    if (mote_pack(w.format, n, k, w.group, q.data(), k, s->data.data(), w.bytes)) stop("pack");
  }
  w.data = s->data.data();
}

inline void fill_scales(std::mt19937 &rng, Weights *s) {
  mote_matrix &w = s->w;
  const int64_t groups = w.group ? (w.cols + w.group - 1) / w.group : 1;
  w.granularity = w.group ? MOTE_GROUP : w.rows % 2 ? MOTE_ROW : MOTE_TENSOR;
  if (is_integers(w.format)) {
    s->scale_bf16.resize(static_cast<size_t>((w.rows + 63) / 64 * groups * 64));
    for (uint16_t &scale : s->scale_bf16) scale = static_cast<uint16_t>(0x3c00 + rng() % 256);  // 0.0078 .. 0.031
    w.scale = s->scale_bf16.data();
    w.scales = static_cast<int64_t>(s->scale_bf16.size());
    if (w.format == MOTE_INT8 || w.rows % 3 == 0) return;
    s->zero_bf16.resize(s->scale_bf16.size());
    for (uint16_t &zero : s->zero_bf16) zero = static_cast<uint16_t>(0x4000 + rng() % 256);  // 2 .. 8
    w.zero = s->zero_bf16.data();
    w.zeros = w.scales;
  } else if (w.format == MOTE_2BIT || w.format == MOTE_BASE3) {
    s->scale_f32.resize(static_cast<size_t>(w.granularity == MOTE_TENSOR ? 1 : w.rows * groups));
    for (float &scale : s->scale_f32) scale = 0.01f + 0.001f * static_cast<float>(rng() % 97);
    w.scale = s->scale_f32.data();
    w.scales = static_cast<int64_t>(s->scale_f32.size());
  }
}

inline Weights random_weights(std::mt19937 &rng, int32_t format, int64_t rows, int64_t cols, int64_t group,
                              bool biased = false) {
  Weights s;
  s.w.rows = rows;
  s.w.cols = cols;
  s.w.group = group;
  s.w.format = format;
  fill_data(rng, &s);
  fill_scales(rng, &s);
  if (biased) {
    s.bias = normals(rng, rows, 1.0f);
    s.w.bias = s.bias.data();
  }
  return s;
}
