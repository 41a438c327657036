// rows_dot: products of row-major bf16 or fp32 weights with fp32 tokens.
//
// Every output is 16 running sums over k in order and one tree (mote.h), so that tiles may be cut anywhere: a tile that
// ends in the middle of a row saves its sums and another goes on with them. Few tokens read the weights straight into
// registers; more share blocks of weights converted into a buffer that stays in L1.
#pragma once
#include <cstdint>
#include <cstring>

#include "isa/float_rows.h"

namespace mote {
namespace {

constexpr int64_t kTileRows = 4;           // rows of a register tile
constexpr int64_t kBlockRows = 8;          // rows of a converted block
constexpr int64_t kBlockCols = 512;        // columns of a converted block: 16 KiB
constexpr int64_t kSumRows = 32;           // rows and tokens whose running sums are kept: 96 KiB, beside as much of x
constexpr int64_t kBlockTokens = 48;
constexpr int64_t kFewTokens = 6;          // up to which nothing is converted beforehand
constexpr int64_t kFewBytes = 128 * 1024;  // of rows that few tokens go over several times
constexpr int64_t kAhead = 256;            // bytes between the weights in use and those being fetched

template <int32_t Format>
constexpr int64_t kBytes = Format == MOTE_BF16 ? 2 : 4;

template <class A, int32_t Format>
inline typename A::V weights(const uint8_t *w) {
  if constexpr (Format == MOTE_BF16) {
    return A::load_bf16(w);
  } else {
    return A::load(w);
  }
}

// sums += 16 weights of each of R rows times 16 inputs of each of T tokens.
template <class A, int32_t Format, int R, int T>
inline void step(const uint8_t *const *w, int64_t offset, const float *const *x, int64_t k,
                 typename A::V (*sums)[T][kParts<A>]) {
#pragma GCC unroll 4
  for (int p = 0; p < kParts<A>; ++p) {
    typename A::V inputs[T];
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) inputs[t] = A::load(x[t] + k + p * A::kWidth);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const auto row = weights<A, Format>(w[r] + offset + p * A::kWidth * kBytes<Format>);
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) sums[r][t][p] = A::fma(row, inputs[t], sums[r][t][p]);
    }
  }
}

// R rows that lie `apart` rows from each other: long streams for the fetching hardware, however short the rows are.
template <class A, int32_t Format, int R, int T>
void rows_times_tokens(const uint8_t *w, int64_t cols, int64_t apart, const float *x, int64_t x_stride, float *y,
                       int64_t y_stride) {
  const uint8_t *row[R];
  const float *token[T];
  typename A::V sums[R][T][kParts<A>];
  for (int t = 0; t < T; ++t) token[t] = x + t * x_stride;
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    row[r] = w + r * apart * cols * kBytes<Format>;
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t)
      for (auto &sum : sums[r][t]) sum = A::broadcast(0.0f);
  }
  constexpr int64_t kLine = 64 / kBytes<Format>;  // weights of a cache line
  int64_t k = 0;
  for (; k + kLine <= cols; k += kLine) {
    for (int r = 0; r < R; ++r) __builtin_prefetch(row[r] + k * kBytes<Format> + kAhead);
#pragma GCC unroll 2
    for (int64_t i = k; i < k + kLine; i += kLanes) step<A, Format, R, T>(row, i * kBytes<Format>, token, i, sums);
  }
  for (; k + kLanes <= cols; k += kLanes) step<A, Format, R, T>(row, k * kBytes<Format>, token, k, sums);
  if (k < cols) {
    uint8_t rest[R][kLanes * kBytes<Format>] = {};
    float inputs[T][kLanes] = {};
    const size_t left = static_cast<size_t>(cols - k);
    for (int r = 0; r < R; ++r) {
      std::memcpy(rest[r], row[r] + k * kBytes<Format>, left * kBytes<Format>);
      row[r] = rest[r];
    }
    for (int t = 0; t < T; ++t) {
      std::memcpy(inputs[t], token[t] + k, left * sizeof *x);
      token[t] = inputs[t];
    }
    step<A, Format, R, T>(row, 0, token, 0, sums);
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) y[t * y_stride + r * apart] = A::sum(sums[r][t]);
}

// At most T tokens at a time; for the next ones the rows come from L2.
template <class A, int32_t Format, int T>
void few_tokens(const uint8_t *w, int64_t rows, int64_t cols, const float *x, int64_t x_stride, int64_t tokens,
                float *y, int64_t y_stride) {
  constexpr int kRows = T == 1 || kParts<A> == 1 ? 4 : 2;
  const int64_t row_bytes = cols * kBytes<Format>, apart = rows / kRows;
  for (; fits<T>(tokens); tokens -= T, x += T * x_stride, y += T * y_stride) {
    for (int64_t r = 0; r < apart; ++r)
      rows_times_tokens<A, Format, kRows, T>(w + r * row_bytes, cols, apart, x, x_stride, y + r, y_stride);
    for (int64_t r = apart * kRows; r < rows; ++r)
      rows_times_tokens<A, Format, 1, T>(w + r * row_bytes, cols, 0, x, x_stride, y + r, y_stride);
  }
  if constexpr (T > 1) few_tokens<A, Format, T - 1>(w, rows, cols, x, x_stride, tokens, y, y_stride);
}

// Sums of kTileRows rows and T tokens over `cols` columns (a multiple of 16). w: fp32 rows kBlockCols apart; sums: 16
// for each row and token, rows kBlockTokens * 16 apart.
template <class A, int T>
void multiply_tile(const float *w, const float *x, int64_t x_stride, int64_t cols, float *sums) {
  for (int64_t p = 0; p < kLanes; p += A::kWidth) {
    typename A::V acc[kTileRows][T];
    float *saved = sums + p;
#pragma GCC unroll 4
    for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) acc[r][t] = A::load(saved + (r * kBlockTokens + t) * kLanes);
    for (int64_t k = p; k < cols; k += kLanes) {
      typename A::V inputs[T];
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) inputs[t] = A::load(x + t * x_stride + k);
#pragma GCC unroll 4
      for (int r = 0; r < kTileRows; ++r) {
        const auto row = A::load(w + r * kBlockCols + k);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) acc[r][t] = A::fma(row, inputs[t], acc[r][t]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) A::store(saved + (r * kBlockTokens + t) * kLanes, acc[r][t]);
  }
}

// All tokens of a block, T at a time, the rest with smaller tiles.
template <class A, int T>
void multiply_tokens(const float *w, int64_t rows, const float *x, int64_t x_stride, int64_t cols, int64_t tokens,
                     float *sums) {
  for (; fits<T>(tokens); tokens -= T, x += T * x_stride, sums += T * kLanes)
    for (int64_t r = 0; r < rows; r += kTileRows)
      multiply_tile<A, T>(w + r * kBlockCols, x, x_stride, cols, sums + r * kBlockTokens * kLanes);
  if constexpr (T > 1) multiply_tokens<A, (T + 1) / 2>(w, rows, x, x_stride, cols, tokens, sums);
}

// Weights [rows, cols] into a block of fp32, zeros up to the next whole tile of rows and 16 columns. The rows of the
// next block are fetched meanwhile.
template <class A, int32_t Format>
void convert(const uint8_t *w, int64_t rows, int64_t row_bytes, int64_t cols, float *block) {
  for (int64_t r = 0; r < kBlockRows; ++r, w += row_bytes, block += kBlockCols) {
    if (r >= rows) {
      std::memset(block, 0, kBlockCols * sizeof *block);
      continue;
    }
    int64_t k = 0;
    for (; k + kLanes <= cols; k += kLanes) {
      __builtin_prefetch(w + kBlockRows * row_bytes + k * kBytes<Format>);
      for (int p = 0; p < kLanes; p += A::kWidth)
        A::store(block + k + p, weights<A, Format>(w + (k + p) * kBytes<Format>));
    }
    if (k < cols) {
      uint8_t rest[kLanes * kBytes<Format>] = {};
      std::memcpy(rest, w + k * kBytes<Format>, static_cast<size_t>((cols - k) * kBytes<Format>));
      for (int p = 0; p < kLanes; p += A::kWidth)
        A::store(block + k + p, weights<A, Format>(rest + p * kBytes<Format>));
    }
  }
}

// The last columns of x, fewer than 16, with zeros behind.
inline void copy_rest(const float *x, int64_t x_stride, int64_t tokens, int64_t cols, float *rest) {
  std::memset(rest, 0, static_cast<size_t>(tokens * kLanes) * sizeof *rest);
  for (int64_t t = 0; t < tokens; ++t)
    std::memcpy(rest + t * kLanes, x + t * x_stride, static_cast<size_t>(cols) * sizeof *x);
}

template <class A>
void finish(const float *sums, int64_t rows, int64_t tokens, float *y, int64_t y_stride) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t t = 0; t < tokens; ++t) {
      typename A::V sum[kParts<A>];
      for (int p = 0; p < kParts<A>; ++p) sum[p] = A::load(sums + (r * kBlockTokens + t) * kLanes + p * A::kWidth);
      y[t * y_stride + r] = A::sum(sum);
    }
}

// At most kSumRows rows and kBlockTokens tokens: their sums and a stretch of their inputs stay in L2.
template <class A, int32_t Format>
void block_of_tokens(const uint8_t *w, int64_t rows, int64_t cols, const float *x, int64_t x_stride, int64_t tokens,
                     float *y, int64_t y_stride) {
  alignas(64) float block[kBlockRows * kBlockCols], sums[kSumRows * kBlockTokens * kLanes];
  float rest[kBlockTokens * kLanes];
  const int64_t row_bytes = cols * kBytes<Format>, whole = cols / kLanes * kLanes;
  if (whole < cols) copy_rest(x + whole, x_stride, tokens, cols - whole, rest);
  std::memset(sums, 0, static_cast<size_t>(round_up(rows, kBlockRows) * kBlockTokens * kLanes) * sizeof *sums);
  for (int64_t k = 0; k < cols; k += kBlockCols) {
    const int64_t width = cols - k < kBlockCols ? cols - k : kBlockCols, even = width / kLanes * kLanes;
    for (int64_t r = 0; r < rows; r += kBlockRows) {
      const int64_t count = rows - r < kBlockRows ? rows - r : kBlockRows;
      const int64_t tiled = round_up(count, kTileRows);
      float *to = sums + r * kBlockTokens * kLanes;
      convert<A, Format>(w + r * row_bytes + k * kBytes<Format>, count, row_bytes, width, block);
      multiply_tokens<A, A::kTile>(block, tiled, x + k, x_stride, even, tokens, to);
      if (even < width) multiply_tokens<A, A::kTile>(block + even, tiled, rest, kLanes, kLanes, tokens, to);
    }
  }
  finish<A>(sums, rows, tokens, y, y_stride);
}

template <class A, int32_t Format>
void rows_dot_as(const uint8_t *w, int64_t rows, int64_t cols, const float *x, int64_t x_stride, int64_t tokens,
                 float *y, int64_t y_stride) {
  const int64_t row_bytes = cols * kBytes<Format>;
  if (tokens <= kFewTokens) {
    const int64_t chunk = tokens > 3 && kFewBytes / row_bytes > 8 ? kFewBytes / row_bytes : rows;
    for (int64_t r = 0; r < rows; r += chunk)
      few_tokens<A, Format, 3>(w + r * row_bytes, rows - r < chunk ? rows - r : chunk, cols, x, x_stride, tokens, y + r,
                               y_stride);
    return;
  }
  for (int64_t t = 0; t < tokens; t += kBlockTokens) {
    const int64_t count = tokens - t < kBlockTokens ? tokens - t : kBlockTokens;
    for (int64_t r = 0; r < rows; r += kSumRows)
      block_of_tokens<A, Format>(w + r * row_bytes, rows - r < kSumRows ? rows - r : kSumRows, cols,
                                 x + t * x_stride, x_stride, count, y + t * y_stride + r, y_stride);
  }
}

template <class A>
void rows_dot(int32_t format, const uint8_t *w, int64_t rows, int64_t cols, const float *x, int64_t x_stride,
              int64_t tokens, float *y, int64_t y_stride) {
  if (format == MOTE_BF16) {
    rows_dot_as<A, MOTE_BF16>(w, rows, cols, x, x_stride, tokens, y, y_stride);
  } else {
    rows_dot_as<A, MOTE_F32>(w, rows, cols, x, x_stride, tokens, y, y_stride);
  }
}
}  // namespace
}  // namespace mote
