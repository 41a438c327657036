// Float kernels that work on one row of numbers: quantisation, norm, rotation, activation, cache writes.
//
// Written once over a type of lanes `A` (lanes_*.h). What is computed element by element has the same bits in any
// width; sums always run in 16 lanes, sum j over inputs k = j modulo 16, and end in one tree. Everything here sits in
// an unnamed namespace: each ISA's file compiles its own copy with its own flags, and the linker must not merge them.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "mote.h"

namespace mote {
namespace {

constexpr int kLanes = 16;  // of every sum
// Adding and taking away 1.5 * 2^23 rounds |v| < 2^22 to the nearest even integer, in any SIMD width.
constexpr float kRound = 12582912.0f;

template <class A>
constexpr int kParts = kLanes / A::kWidth;

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Whether a register tile of T rows should be next when `left` are left. A last tile of one row would be too narrow to
// keep the multiply-add units busy: of four, two go with two.
template <int T>
inline bool fits(int64_t left) {
  return left >= T && (T < 3 || left != T + 1);
}

struct Whole {};  // all lanes, as against the first n
template <class A>
inline typename A::V load(const float *p, Whole) {
  return A::load(p);
}
template <class A>
inline typename A::V load(const float *p, int64_t n) {  // zeros beyond n
  float buffer[A::kWidth] = {};
  std::memcpy(buffer, p, static_cast<size_t>(n) * sizeof *p);
  return A::load(buffer);
}
template <class A>
inline void store(float *p, typename A::V v, Whole) {
  A::store(p, v);
}
template <class A>
inline void store(float *p, typename A::V v, int64_t n) {
  float buffer[A::kWidth];
  A::store(buffer, v);
  std::memcpy(p, buffer, static_cast<size_t>(n) * sizeof *p);
}

// f(i, Whole) for full registers from i, then f(i, rest).
template <class A, class F>
inline void each(int64_t n, F f) {
  int64_t i = 0;
  for (; i + A::kWidth <= n; i += A::kWidth) f(i, Whole{});
  if (i < n) f(i, n - i);
}

// The sum of f(x) over a row, f(lanes of x, running sum) -> running sum; f must leave the sum alone at x = 0.
template <class A, class F>
inline float sum_row(const float *x, int64_t n, F f) {
  typename A::V sum[kParts<A>];
  for (auto &part : sum) part = A::broadcast(0.0f);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int p = 0; p < kParts<A>; ++p) sum[p] = f(A::load(x + i + p * A::kWidth), sum[p]);
  if (i < n) {
    float buffer[kLanes] = {};
    std::memcpy(buffer, x + i, static_cast<size_t>(n - i) * sizeof *x);
    for (int p = 0; p < kParts<A>; ++p) sum[p] = f(A::load(buffer + p * A::kWidth), sum[p]);
  }
  return A::sum(sum);
}

// e^x to about one unit in the last place: x = n ln 2 + r, |r| <= ln 2 / 2, a polynomial in r fitted for the least
// relative error, then 2^n in two steps so that results below 2^-126 and the overflow to Inf come out right. The order
// of the operands of min and max lets NaN through.
template <class A>
inline typename A::V exponential(typename A::V x) {
  const auto b = [](float a) { return A::broadcast(a); };
  x = A::min(b(89.0f), A::max(b(-105.0f), x));
  const auto n = A::sub(A::fma(x, b(1.44269504f), b(kRound)), b(kRound));
  auto r = A::fma(n, b(-0.693145751953125f), x);  // 16 bits of ln 2: exact
  r = A::fma(n, b(-1.42860677e-6f), r);
  auto q = A::fma(b(0x1.6a2350p-10f), r, b(0x1.123a6cp-7f));
  q = A::fma(q, r, b(0x1.5558f4p-5f));
  q = A::fma(q, r, b(0x1.555490p-3f));
  q = A::fma(q, r, b(0x1.fffffcp-2f));
  const auto p = A::add(A::fma(A::mul(r, r), q, r), b(1.0f));
  const auto half = A::fma(n, b(0.5f), b(kRound));
  const auto other = A::add(A::sub(n, A::sub(half, b(kRound))), b(kRound));
  return A::mul(A::mul(p, A::pow2(half)), A::pow2(other));
}

template <class A>
void quantize(const float *x, int64_t n, int8_t *x_q, float *s, int32_t *sum) {
  auto tops = A::broadcast(0.0f);
  each<A>(n, [&](int64_t i, auto m) { tops = A::max_bits(tops, A::abs(load<A>(x + i, m))); });
  float lane[A::kWidth];
  A::store(lane, tops);
  uint32_t top = 0;
  for (float value : lane) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    top = bits > top ? bits : top;
  }
  float a;
  std::memcpy(&a, &top, sizeof a);
  *sum = 0;
  if (top >= 0x7f800000) {  // a NaN or Inf must not be hidden
    std::memset(x_q, 0, static_cast<size_t>(n));
    *s = a;
    return;
  }
  a = a > 1e-5f ? a : 1e-5f;
  const auto inverse = A::broadcast(127.0f / a), round = A::broadcast(kRound);
  const auto integers = [&](auto v) {
    v = A::sub(A::add(A::mul(v, inverse), round), round);
    return A::max(A::broadcast(-128.0f), A::min(A::broadcast(127.0f), v));
  };
  int64_t i = 0;
  for (; i + A::kWidth <= n; i += A::kWidth) A::store_i8(x_q + i, integers(A::load(x + i)));
  if (i < n) {
    int8_t buffer[A::kWidth];
    A::store_i8(buffer, integers(load<A>(x + i, n - i)));
    std::memcpy(x_q + i, buffer, static_cast<size_t>(n - i));
  }
  int32_t total = 0;
  for (i = 0; i < n; ++i) total += x_q[i];
  *sum = total;
  *s = a / 127.0f;
}

template <class A>
void rms_norm(const float *x, const float *weight, float eps, int64_t n, float *y) {
  const float squares = sum_row<A>(x, n, [](auto v, auto sum) { return A::fma(v, v, sum); });
  const auto inverse = A::broadcast(1.0f / std::sqrt(squares / static_cast<float>(n) + eps));
  each<A>(n, [&](int64_t i, auto m) {
    store<A>(y + i, A::mul(A::mul(load<A>(x + i, m), inverse), load<A>(weight + i, m)), m);
  });
}

// Two products and their sum, each rounded.
template <class A>
void rotate(float *x, const float *cos, const float *sin, int64_t head_dim) {
  const int64_t half = head_dim / 2;
  each<A>(half, [&](int64_t i, auto m) {
    const auto a = load<A>(x + i, m), b = load<A>(x + half + i, m);
    const auto c = load<A>(cos + i, m), s = load<A>(sin + i, m);
    store<A>(x + i, A::sub(A::mul(a, c), A::mul(b, s)), m);
    store<A>(x + half + i, A::add(A::mul(b, c), A::mul(a, s)), m);
  });
}

// silu(g) = g / (1 + e^-g), with e^-|g| so that nothing overflows: below zero g e^g / (1 + e^g).
template <class A>
void silu_multiply(const float *g, const float *u, int64_t n, float *y) {
  each<A>(n, [&](int64_t i, auto m) {
    const auto v = load<A>(g + i, m), one = A::broadcast(1.0f);
    const auto e = exponential<A>(A::sub(A::broadcast(0.0f), A::abs(v)));
    const auto silu = A::div(A::select(v, A::mul(v, e), v), A::add(one, e));
    store<A>(y + i, A::mul(silu, load<A>(u + i, m)), m);
  });
}

template <class A>
void add_scaled(float a, const float *x, int64_t n, float *y) {
  each<A>(n, [&](int64_t i, auto m) {
    store<A>(y + i, A::add(load<A>(y + i, m), A::mul(A::broadcast(a), load<A>(x + i, m))), m);
  });
}

// To the nearest bf16, ties to even; NaN stays NaN.
inline uint16_t to_bf16(float a) {
  uint32_t bits;
  std::memcpy(&bits, &a, sizeof bits);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <class A>
void store_kv(const float *k, const float *v, int64_t head_dim, int64_t slot, int32_t kv_format, void *k_block,
              void *v_block) {
  auto *keys = static_cast<uint8_t *>(k_block), *values = static_cast<uint8_t *>(v_block);
  for (int64_t d = 0; d < head_dim; ++d) {
    const int64_t key = d * MOTE_KV_TOKENS + slot, value = slot * head_dim + d;
    if (kv_format == MOTE_F32) {
      std::memcpy(keys + 4 * key, k + d, 4);
      std::memcpy(values + 4 * value, v + d, 4);
    } else {
      const uint16_t k16 = to_bf16(k[d]), v16 = to_bf16(v[d]);
      std::memcpy(keys + 2 * key, &k16, 2);
      std::memcpy(values + 2 * value, &v16, 2);
    }
  }
}
}  // namespace
}  // namespace mote
