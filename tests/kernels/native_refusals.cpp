// Sizes that must be refused without a look at memory: the pointers are wild.
#include "native_driver.h"

namespace {

int64_t passed = 0;

void refuse_matrices() {
  const auto *wild = reinterpret_cast<const uint8_t *>(16);
  const auto *x = reinterpret_cast<const int8_t *>(16);
  auto *y = reinterpret_cast<int32_t *>(16);
  const mote_matrix bad[] = {
      matrix(nullptr, 1024, 64, 16, 0, MOTE_2BIT), matrix(wild, 255, 64, 16, 0, MOTE_2BIT),
      matrix(wild, 256, 65, 16, 0, MOTE_2BIT),     matrix(wild, 256, 0, 16, 0, MOTE_2BIT),
      matrix(wild, 256, 64, -16, 0, MOTE_2BIT),    matrix(wild, 256, 64, 16, 7, MOTE_2BIT),
      matrix(wild, 256, 64, 16, -20, MOTE_BASE3),  matrix(wild, 256, 64, 16, 0, 9),
      matrix(wild, INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX, MOTE_BASE3),
      matrix(wild, 256, INT64_MIN, INT64_MIN, 0, MOTE_BASE3),
      matrix(wild, 512, 64, 16, 0, MOTE_INT4),     matrix(wild, 512, 64, 16, 12, MOTE_INT4),
      matrix(wild, 512, 64, 16, 1032, MOTE_INT4),  matrix(wild, 511, 64, 16, 32, MOTE_INT4),
      matrix(wild, 1024, 64, 16, 6, MOTE_INT8),    matrix(wild, 512, 64, 16, 32, MOTE_INT8),
      matrix(wild, INT64_MAX, 64, INT64_MAX, INT64_MAX, MOTE_INT8),
  };
  for (const mote_matrix &w : bad) {
    if (mote_matmul_i32(&w, x, 1, 16, y, 64, 1) != MOTE_BAD_ARGUMENT) stop("a bad matrix was accepted");
    if (mote_linear_f32(&w, reinterpret_cast<const float *>(x), 1, 16, reinterpret_cast<float *>(y), 64, 1) !=
        MOTE_BAD_ARGUMENT)
      stop("a bad matrix was accepted");
    ++passed;
  }
}

void refuse_scales() {
  const auto *wild = reinterpret_cast<const uint8_t *>(16);
  const auto *x = reinterpret_cast<const float *>(16);
  auto *y = reinterpret_cast<float *>(16);
  mote_matrix w = matrix(wild, 256, 64, 16, 0, MOTE_2BIT);
  const auto refused = [&](const void *scale, int64_t scales, int32_t granularity) {
    w.scale = scale;
    w.scales = scales;
    w.granularity = granularity;
    return mote_linear_f32(&w, x, 1, 16, y, 64, 1) == MOTE_BAD_ARGUMENT;
  };
  bool all = refused(nullptr, 1, MOTE_TENSOR) && refused(wild, 2, MOTE_TENSOR) && refused(wild, 63, MOTE_ROW) &&
             refused(wild, 64, MOTE_GROUP) && refused(wild, 1, 3) && refused(wild, 1, -1);
  w = matrix(wild, 512, 64, 16, 8, MOTE_INT4);
  all = all && refused(wild, 64, MOTE_GROUP) && refused(nullptr, 128, MOTE_GROUP) && refused(wild, 128, MOTE_ROW);
  w = matrix(wild, 2048, 64, 16, 0, MOTE_BF16);
  all = all && refused(wild, 1, MOTE_TENSOR);
  if (!all) stop("bad scales were accepted");
  ++passed;
}

void refuse_calls() {
  const auto *wild = reinterpret_cast<const uint8_t *>(16);
  const auto *x = reinterpret_cast<const int8_t *>(16);
  auto *y = reinterpret_cast<int32_t *>(16);
  const mote_matrix w = matrix(wild, 256, 64, 16, 0, MOTE_2BIT), dense = matrix(wild, 2048, 64, 16, 0, MOTE_BF16);
  bool refused = mote_matmul_i32(&w, x, -1, 16, y, 64, 1) && mote_matmul_i32(&w, x, 1, 15, y, 64, 1) &&
                 mote_matmul_i32(&w, x, 1, 16, y, 63, 1) && mote_matmul_i32(&w, x, 1, 16, y, 64, 0) &&
                 mote_matmul_i32(nullptr, x, 1, 16, y, 64, 1) && mote_matmul_i32(&w, x, 4, INT64_MAX, y, 64, 1) &&
                 mote_matmul_i32(&w, x, 4, 16, y, INT64_MAX, 1) && mote_matmul_i32(&dense, x, 1, 16, y, 64, 1);
  const int64_t rows[] = {0, 64}, negative[] = {-1};
  auto *out = reinterpret_cast<float *>(16);
  refused = refused && mote_rows_f32(&dense, rows, 2, out, 16) && mote_rows_f32(&dense, negative, 1, out, 16) &&
            mote_rows_f32(&dense, rows, 1, out, 15) && mote_rows_f32(&dense, rows, -1, out, 16) &&
            mote_rows_f32(&dense, nullptr, 1, out, 16) && mote_rows_f32(&dense, rows, 1, nullptr, 16) &&
            mote_rows_f32(nullptr, rows, 1, out, 16) && mote_rows_f32(&w, rows, 1, out, 16) &&
            mote_rows_f32(&dense, rows, 1, out, INT64_MAX);
  const auto *floats = reinterpret_cast<const float *>(16);
  auto *integers = reinterpret_cast<int8_t *>(16);
  const int64_t wide = int64_t{1} << 40;
  refused = refused && mote_quantize_activation(floats, 1, wide, wide, integers, wide, out);
  if (!refused) stop("bad sizes were accepted");
  ++passed;
}

void refuse_ffns() {
  const auto *wild = reinterpret_cast<const uint8_t *>(16);
  const auto *h = reinterpret_cast<const float *>(16);
  auto *y = reinterpret_cast<float *>(16);
  mote_ffn none{};
  none.experts = reinterpret_cast<const mote_expert *>(wild);
  bool refused = mote_ffn_f32(&none, h, 1, 16, y, 16, nullptr, nullptr, 1) == MOTE_BAD_ARGUMENT;
  mote_expert expert{};
  expert.gate = expert.up = expert.down = matrix(wild, 512, 16, 16, 0, MOTE_BF16);
  mote_ffn shared{};
  shared.shared = &expert;
  refused = refused && mote_ffn_f32(&shared, h, 4, INT64_MAX, y, 16, nullptr, nullptr, 1) == MOTE_BAD_ARGUMENT &&
            mote_ffn_f32(&shared, h, 4, 16, y, INT64_MAX, nullptr, nullptr, 1) == MOTE_BAD_ARGUMENT;
  if (!refused) stop("a bad feed-forward layer was accepted");
  ++passed;
}
}  // namespace

int64_t refusals() {
  refuse_matrices();
  refuse_scales();
  refuse_calls();
  refuse_ffns();
  return passed;
}
