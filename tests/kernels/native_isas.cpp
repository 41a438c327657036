// Bits between ISAs: numbers whose products round, at awkward shapes, on every usable ISA and on the plain kernels.
#include <cstring>
#include <random>
#include <sstream>
#include <vector>

#include "native_driver.h"

namespace {

std::mt19937 rng(23);

float number(float scale) { return std::normal_distribution<float>(0.0f, scale)(rng); }

// Everything of one product but the ISA.
struct Sample {
  int64_t tokens;
  std::vector<uint8_t> data;
  std::vector<float> x, bias, scale_f32;
  std::vector<uint16_t> scale_bf16;
  mote_matrix w;
};

void fill_weights(Sample *s) {
  mote_matrix &w = s->w;
  const int64_t n = w.rows, k = w.cols;
  w.bytes = mote_packed_bytes(w.format, n, k, w.group);
  if (w.bytes < 0) stop("packed_bytes");
  s->data.resize(static_cast<size_t>(w.bytes));
  if (w.format == MOTE_BF16 || w.format == MOTE_F32) {
    for (int64_t i = 0; i < n * k; ++i) {
      const float value = number(0.1f);
      const auto *bytes = reinterpret_cast<const uint8_t *>(&value);  // bf16: the upper half
      const size_t width = w.format == MOTE_F32 ? 4 : 2;
      std::memcpy(s->data.data() + static_cast<size_t>(i) * width, bytes + 4 - width, width);
    }
  } else {
    const int high = w.format == MOTE_INT4 ? 7 : w.format == MOTE_INT8 ? 127 : 1;
    const int low = w.format == MOTE_INT4 ? -8 : -high;
    std::vector<int8_t> q(static_cast<size_t>(n * k));
    for (int8_t &v : q) v = static_cast<int8_t>(static_cast<int>(rng() % static_cast<unsigned>(high - low + 1)) + low);
    if (mote_pack(w.format, n, k, w.group, q.data(), k, s->data.data(), w.bytes)) stop("pack");
  }
  w.data = s->data.data();
}

void fill_scales(Sample *s) {
  mote_matrix &w = s->w;
  const int64_t groups = w.group ? (w.cols + w.group - 1) / w.group : 1;
  w.granularity = w.group ? MOTE_GROUP : w.rows % 2 ? MOTE_ROW : MOTE_TENSOR;
  if (w.format == MOTE_INT4 || w.format == MOTE_INT8) {
    s->scale_bf16.resize(static_cast<size_t>((w.rows + 63) / 64 * groups * 64));
    for (uint16_t &scale : s->scale_bf16) scale = static_cast<uint16_t>(0x3c00 + rng() % 256);  // 0.0078 .. 0.031
    w.scale = s->scale_bf16.data();
    w.scales = static_cast<int64_t>(s->scale_bf16.size());
  } else if (w.format == MOTE_2BIT || w.format == MOTE_BASE3) {
    s->scale_f32.resize(static_cast<size_t>(w.granularity == MOTE_TENSOR ? 1 : w.rows * groups));
    for (float &scale : s->scale_f32) scale = 0.01f + 0.001f * static_cast<float>(rng() % 97);
    w.scale = s->scale_f32.data();
    w.scales = static_cast<int64_t>(s->scale_f32.size());
  }
  s->bias.resize(static_cast<size_t>(w.rows));
  for (float &bias : s->bias) bias = number(1.0f);
  w.bias = s->bias.data();
}

std::vector<float> product(const char *isa, const Sample &s) {
  if (mote_select_isa(isa)) stop(std::string("select ") + isa);
  std::vector<float> y(static_cast<size_t>(s.tokens * s.w.rows));
  if (mote_linear_f32(&s.w, s.x.data(), s.tokens, s.w.cols, y.data(), s.w.rows, 1)) stop(std::string("linear ") + isa);
  return y;
}

void compare(int32_t format, int64_t rows, int64_t cols, int64_t group, int64_t tokens) {
  Sample s{};
  s.tokens = tokens;
  s.w.rows = rows;
  s.w.cols = cols;
  s.w.group = group;
  s.w.format = format;
  fill_weights(&s);
  fill_scales(&s);
  s.x.resize(static_cast<size_t>(tokens * cols));
  for (float &x : s.x) x = number(3.0f);
  const std::vector<float> plain = product("scalar", s);
  std::istringstream names(mote_isas());
  for (std::string isa; names >> isa;) {
    if (std::memcmp(product(isa.c_str(), s).data(), plain.data(), plain.size() * sizeof(float)) == 0) continue;
    std::ostringstream what;
    what << isa << " and scalar differ: format " << format << " [" << rows << ", " << cols << "] group " << group
         << " tokens " << tokens;
    stop(what.str());
  }
}
}  // namespace

int64_t compare_isas() {
  int64_t passed = 0;
  for (int32_t format : {MOTE_2BIT, MOTE_BASE3, MOTE_INT4, MOTE_INT8, MOTE_BF16, MOTE_F32})
    for (int64_t rows : {3, 64, 77})
      for (int64_t cols : {5, 44, 329, 1061})
        for (int64_t tokens : {1, 2, 3, 4, 5, 6, 7, 20})
          for (int64_t group : {0, 32, 64, 328, 1024}) {
            const bool scaled = format == MOTE_INT4 || format == MOTE_INT8, ternary = format <= MOTE_BASE3;
            if (group ? !scaled && !(ternary && group == 32) : scaled) continue;
            compare(format, rows, cols, group, tokens);
            ++passed;
          }
  return passed;
}
