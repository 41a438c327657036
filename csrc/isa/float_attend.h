// attend: softmax(q . K * scale) . V of many query rows (tokens x query heads) of one kv head.
//
// Rows go through in groups that share each block of keys and values, converted to fp32 once. The arithmetic of a row
// is its own, whatever group or tile it falls in: a score is a chain of fused multiply-adds over head_dim in order, the
// sum of exponentials runs in 16 lanes over positions 0 .. own, and an output is a chain over positions in order, so
// that a cut of the sequence changes no bit. Positions behind `own` are never read into a row's result: they may hold
// anything, NaN too.
#pragma once
#include <cstdint>
#include <cstring>

#include "isa/float_rows.h"
#include "isa/isa.h"

namespace mote {
namespace {

constexpr int64_t kGroupRows = 24;  // query rows that share one conversion of the cache
constexpr int64_t kMaxHead = 256;
constexpr int64_t kKeys = MOTE_KV_TOKENS;

// Some rows of a span, one after the other token by token, and their scratch.
struct RowGroup {
  const AttentionSpan &span;
  int64_t first, count;  // row i is query head i % heads of token span.first + i / heads
  int64_t score_stride;
  float *scores;  // [count] rows of score_stride floats: scores, then exponentials
  float *tile;    // one block of keys [head_dim][32] or values [32][padded head_dim] in fp32
  float *outputs; // [count][padded head_dim]

  int64_t token(int64_t i) const { return span.first + (first + i) / span.heads; }
  int64_t positions(int64_t i) const { return span.start + token(i) + 1; }
  int64_t offset(int64_t i) const { return token(i) * span.q_token + (first + i) % span.heads * span.head_dim; }
  int64_t padded() const { return round_up(span.head_dim, kLanes); }
};

// [rows][cols] of the cache into fp32, rows `stride` apart and zeros behind cols up to it.
template <class A>
void widen(const uint8_t *from, int32_t format, int64_t rows, int64_t cols, int64_t stride, float *to) {
  const int64_t bytes = format == MOTE_BF16 ? 2 : 4;
  if (cols == stride) cols = stride = cols * rows, rows = 1;
  for (int64_t r = 0; r < rows; ++r, from += cols * bytes, to += stride) {
    int64_t i = 0;
    for (; i + A::kWidth <= cols; i += A::kWidth)
      A::store(to + i, format == MOTE_BF16 ? A::load_bf16(from + 2 * i) : A::load(from + 4 * i));
    uint8_t rest[A::kWidth * 4] = {};
    std::memcpy(rest, from + i * bytes, static_cast<size_t>((cols - i) * bytes));
    for (; i < stride; i += A::kWidth, std::memset(rest, 0, sizeof rest))
      A::store(to + i, format == MOTE_BF16 ? A::load_bf16(rest) : A::load(rest));
  }
}

// Scores of T rows with the 32 keys of a tile, scaled.
template <class A, int T>
void score_tile(const RowGroup &group, int64_t row, float *scores) {
  constexpr int kAcross = A::kWidth == 16 ? 2 : 4;  // registers of keys at once
  const float *q[T];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) q[t] = group.span.q + group.offset(row + t);
  for (int64_t key = 0; key < kKeys; key += kAcross * A::kWidth) {
    typename A::V acc[kAcross][T];
#pragma GCC unroll 4
    for (int a = 0; a < kAcross; ++a)
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) acc[a][t] = A::broadcast(0.0f);
    const float *keys = group.tile + key;
    for (int64_t d = 0; d < group.span.head_dim; ++d, keys += kKeys) {
      typename A::V inputs[T];
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) inputs[t] = A::broadcast(q[t][d]);
#pragma GCC unroll 4
      for (int a = 0; a < kAcross; ++a) {
        const auto lanes = A::load(keys + a * A::kWidth);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) acc[a][t] = A::fma(inputs[t], lanes, acc[a][t]);
      }
    }
    const auto scale = A::broadcast(group.span.scale);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
      for (int a = 0; a < kAcross; ++a)
        A::store(scores + t * group.score_stride + key + a * A::kWidth, A::mul(acc[a][t], scale));
  }
}

template <class A, int T>
void score_rows(const RowGroup &group, int64_t row, int64_t block) {
  for (; fits<T>(group.count - row); row += T)
    score_tile<A, T>(group, row, group.scores + row * group.score_stride + block * kKeys);
  if constexpr (T > 1) score_rows<A, (T + 1) / 2>(group, row, block);
}

// Scores into exponentials of their distance to the largest; returns their sum.
template <class A>
float exponentials(float *scores, int64_t n) {
  auto tops = A::broadcast(scores[0]);
  each<A>(n / A::kWidth * A::kWidth, [&](int64_t i, auto m) { tops = A::max(load<A>(scores + i, m), tops); });
  float lane[A::kWidth];
  A::store(lane, tops);
  float top = lane[0];
  for (float value : lane) top = value > top ? value : top;
  for (int64_t i = n / A::kWidth * A::kWidth; i < n; ++i) top = scores[i] > top ? scores[i] : top;
  each<A>(n, [&](int64_t i, auto m) {
    store<A>(scores + i, exponential<A>(A::sub(load<A>(scores + i, m), A::broadcast(top))), m);
  });
  return sum_row<A>(scores, n, [](auto v, auto sum) { return A::add(sum, v); });
}

// outputs += weights of T rows from `row` on times the values of places from .. to - 1 of the tile, for N registers of
// the head from d on.
template <class A, int T, int N>
void value_tile(const RowGroup &group, int64_t row, const float *weights, int64_t from, int64_t to, int64_t d) {
  const int64_t padded = group.padded();
  typename A::V acc[N][T];
  float *outputs = group.outputs + row * padded + d;
#pragma GCC unroll 4
  for (int a = 0; a < N; ++a)
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) acc[a][t] = A::load(outputs + t * padded + a * A::kWidth);
  const float *values = group.tile + from * padded + d;
  for (int64_t i = from; i < to; ++i, values += padded) {
    typename A::V inputs[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) inputs[t] = A::broadcast(weights[t * group.score_stride + i]);
#pragma GCC unroll 4
    for (int a = 0; a < N; ++a) {
      const auto lanes = A::load(values + a * A::kWidth);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) acc[a][t] = A::fma(inputs[t], lanes, acc[a][t]);
    }
  }
#pragma GCC unroll 4
  for (int a = 0; a < N; ++a)
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) A::store(outputs + t * padded + a * A::kWidth, acc[a][t]);
}

template <class A, int T>
void value_span(const RowGroup &group, int64_t row, const float *weights, int64_t from, int64_t to) {
  if (from >= to) return;
  int64_t d = 0;
  for (; d + 4 * A::kWidth <= group.padded(); d += 4 * A::kWidth)
    value_tile<A, T, 4>(group, row, weights, from, to, d);
  for (; d + 2 * A::kWidth <= group.padded(); d += 2 * A::kWidth)
    value_tile<A, T, 2>(group, row, weights, from, to, d);
  for (; d < group.padded(); d += A::kWidth) value_tile<A, T, 1>(group, row, weights, from, to, d);
}

// Rows of a tile go together as far as the first, which has the fewest positions, then each on its own.
template <class A, int T>
void value_rows(const RowGroup &group, int64_t row, int64_t block) {
  const auto places = [&](int64_t i) {
    const int64_t left = group.positions(i) - block * kKeys;
    return left < 0 ? 0 : left < kKeys ? left : kKeys;
  };
  for (; fits<T>(group.count - row); row += T) {
    const float *weights = group.scores + row * group.score_stride + block * kKeys;
    const int64_t common = places(row);
    value_span<A, T>(group, row, weights, 0, common);
    for (int t = 1; t < T; ++t)
      value_span<A, 1>(group, row + t, weights + t * group.score_stride, common, places(row + t));
  }
  if constexpr (T > 1) value_rows<A, (T + 1) / 2>(group, row, block);
}

template <class A>
void attend_group(const RowGroup &group) {
  const AttentionSpan &span = group.span;
  const int64_t blocks = round_up(group.positions(group.count - 1), kKeys) / kKeys, padded = group.padded();
  for (int64_t b = 0; b < blocks; ++b) {
    widen<A>(static_cast<const uint8_t *>(span.blocks[b]) + span.k_offset, span.kv_format, span.head_dim, kKeys, kKeys,
             group.tile);
    score_rows<A, A::kTile>(group, 0, b);
  }
  float sums[kGroupRows];
  for (int64_t i = 0; i < group.count; ++i)
    sums[i] = exponentials<A>(group.scores + i * group.score_stride, group.positions(i));
  std::memset(group.outputs, 0, static_cast<size_t>(group.count * padded) * sizeof(float));
  for (int64_t b = 0; b < blocks; ++b) {
    widen<A>(static_cast<const uint8_t *>(span.blocks[b]) + span.v_offset, span.kv_format, kKeys, span.head_dim, padded,
             group.tile);
    value_rows<A, A::kTile>(group, 0, b);
  }
  for (int64_t i = 0; i < group.count; ++i) {
    float *out = span.out + group.offset(i);
    const float *from = group.outputs + i * padded;
    each<A>(span.head_dim, [&](int64_t d, auto m) {
      store<A>(out + d, A::div(load<A>(from + d, m), A::broadcast(sums[i])), m);
    });
  }
}

template <class A>
void attend(const AttentionSpan &span, float *scratch) {
  auto address = reinterpret_cast<uintptr_t>(scratch);
  float *tile = scratch + (round_up(static_cast<int64_t>(address), 64) - static_cast<int64_t>(address)) / 4;
  float *outputs = tile + kKeys * kMaxHead, *scores = outputs + kGroupRows * kMaxHead;
  const int64_t stride = round_up(span.start + span.first + span.count, kKeys);
  const int64_t rows = span.count * span.heads;
  for (int64_t first = 0; first < rows; first += kGroupRows) {
    const int64_t count = rows - first < kGroupRows ? rows - first : kGroupRows;
    attend_group<A>({span, first, count, stride, scores, tile, outputs});
  }
}

inline int64_t attend_scratch(int64_t positions) {
  return kLanes + kKeys * kMaxHead + kGroupRows * (kMaxHead + round_up(positions, kKeys));
}
}  // namespace
}  // namespace mote
