// Candidate orders of the packed digits on one ISA, built from the library's own pieces; driven by ../packed_order.py.
//
// "strips of 16 B rows": as the real order (csrc/format.h) but with B blocks of 16 rows to a strip, B = 1, 2, 4 (the real
// one), 8. "rows": each row contiguous, as ggml keeps it: byte j of a run of W bytes (one register) holds inputs j + p W.
// Compiled once per ISA: the includes below bring load, broadcast and the decoding of digits.
#if defined(__AVX512VNNI__)
#include "../../csrc/isa/avx512vnni.cpp"
#else
#include "../../csrc/isa/avx2.cpp"
#endif

namespace mote {
namespace {

constexpr int64_t kWidth = sizeof(V);

#if defined(__AVX512VNNI__)
constexpr int64_t kFlush = INT64_MAX;  // k-groups before an accumulator must be widened
inline V widened(V acc) { return acc; }
inline V add32(V a, V b) { return _mm512_add_epi32(a, b); }
inline V add_digits(V acc, V digits, V x) { return _mm512_dpbusd_epi32(acc, digits, x); }
inline int32_t total(V acc) { return _mm512_reduce_add_epi32(acc); }
template <int32_t F>
inline V add_group(V acc, V v, V x0, V x1, V x2, V x3, V x4) {
  if constexpr (F == MOTE_BASE3) {
    const V low = below_81(v);
    const V multiple = _mm512_sub_epi8(v, low);  // 0, 81, 162
    const V top = _mm512_add_epi8(_mm512_maskz_mov_epi8(_mm512_test_epi8_mask(multiple, multiple), bytes_of(1)),
                                  _mm512_maskz_mov_epi8(_mm512_movepi8_mask(multiple), bytes_of(1)));
    acc = add_digits(acc, top, x4);
    v = to_2bit(low);
  }
  acc = add_digits(acc, _mm512_and_si512(v, bytes_of(3)), x0);
  acc = add_digits(acc, _mm512_and_si512(_mm512_srli_epi16(v, 2), bytes_of(3)), x1);
  acc = add_digits(acc, _mm512_and_si512(_mm512_srli_epi16(v, 4), bytes_of(3)), x2);
  return add_digits(acc, _mm512_and_si512(_mm512_srli_epi16(v, 6), bytes_of(3)), x3);
}
template <int32_t F>
constexpr int64_t kQuadsOfByte = kQuadsOf<F>;
#else
constexpr int64_t kFlush = 12;
inline V widened(V acc) { return widen(acc); }
inline V add32(V a, V b) { return _mm256_add_epi32(a, b); }
inline int32_t total(V acc) {
  alignas(32) int32_t lane[8];
  store(lane, acc);
  int32_t sum = 0;
  for (int32_t value : lane) sum += value;
  return sum;
}
template <int32_t F>
inline V add_group(V acc, V v, V x0, V x1, V x2, V x3, V x4) {
  return multiply_group<F>(acc, v, x0, x1, x2, x3, x4);
}
template <int32_t F>
constexpr int64_t kQuadsOfByte = Layout<F>::quads;
#endif

template <int32_t F, int B>
void gemv_strips(const uint8_t *w, int64_t rows, int64_t kgs, const int8_t *x, int32_t *y) {
  constexpr int R = B * 64 / static_cast<int>(kWidth);
  for (int64_t strip = 0; strip < rows / (16 * B); ++strip, y += 16 * B) {
    V sum[R];
    for (int r = 0; r < R; ++r) sum[r] = V{};
    const int8_t *row = x;
    for (int64_t start = 0; start < kgs; start += std::min(kFlush, kgs - start)) {
      V acc[R];
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) acc[r] = V{};
      for (int64_t g = 0; g < std::min(kFlush, kgs - start); ++g, w += 64 * B, row += 4 * kQuadsOfByte<F>) {
#pragma GCC unroll 8
        for (int line = 0; line < B; ++line)
          _mm_prefetch(reinterpret_cast<const char *>(w) + kPrefetch + 64 * line, _MM_HINT_T0);
        const V x0 = broadcast(row), x1 = broadcast(row + 4), x2 = broadcast(row + 8), x3 = broadcast(row + 12);
        const V x4 = F == MOTE_BASE3 ? broadcast(row + 16) : x0;
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) acc[r] = add_group<F>(acc[r], load(w + r * kWidth), x0, x1, x2, x3, x4);
      }
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) sum[r] = add32(sum[r], widened(acc[r]));
    }
    for (int r = 0; r < R; ++r) store(y + r * kWidth / 4, sum[r]);
  }
}

// Rows contiguous, 4 rows at a time; runs = registers per row.
template <int32_t F>
void gemv_rows(const uint8_t *w, int64_t rows, int64_t runs, const int8_t *x, int32_t *y) {
  for (int64_t n = 0; n < rows; n += 4) {
    V sum[4] = {V{}, V{}, V{}, V{}};
    for (int64_t start = 0; start < runs; start += std::min(kFlush, runs - start)) {
      V acc[4] = {V{}, V{}, V{}, V{}};
      for (int64_t g = start; g < start + std::min(kFlush, runs - start); ++g) {
        const int8_t *v = x + g * kQuadsOfByte<F> * kWidth;
        const V x0 = load(v), x1 = load(v + kWidth), x2 = load(v + 2 * kWidth), x3 = load(v + 3 * kWidth);
        const V x4 = F == MOTE_BASE3 ? load(v + 4 * kWidth) : x0;
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) {
          const uint8_t *bytes = w + ((n + r) * runs + g) * kWidth;
          _mm_prefetch(reinterpret_cast<const char *>(bytes) + kPrefetch / 2, _MM_HINT_T0);
          acc[r] = add_group<F>(acc[r], load(bytes), x0, x1, x2, x3, x4);
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) sum[r] = add32(sum[r], widened(acc[r]));
    }
    for (int r = 0; r < 4; ++r) y[n + r] = total(sum[r]);
  }
}

template <int32_t F>
int gemv(int blocks, const uint8_t *w, int64_t rows, int64_t steps, const int8_t *x, int32_t *y) {
  switch (blocks) {
    case 0: gemv_rows<F>(w, rows, steps, x, y); return 0;
    case 1: gemv_strips<F, 1>(w, rows, steps, x, y); return 0;
    case 2: gemv_strips<F, 2>(w, rows, steps, x, y); return 0;
    case 4: gemv_strips<F, 4>(w, rows, steps, x, y); return 0;
    case 8: gemv_strips<F, 8>(w, rows, steps, x, y); return 0;
    default: return 1;
  }
}
}  // namespace
}  // namespace mote

extern "C" __attribute__((visibility("default"))) int trial_gemv(int32_t format, int blocks, const uint8_t *w,
                                                                int64_t rows, int64_t steps, const int8_t *x,
                                                                int32_t *y) {
  return format == MOTE_2BIT ? mote::gemv<MOTE_2BIT>(blocks, w, rows, steps, x, y)
                             : mote::gemv<MOTE_BASE3>(blocks, w, rows, steps, x, y);
}

extern "C" __attribute__((visibility("default"))) int64_t trial_width() { return mote::kWidth; }

// Reads every byte once: the bandwidth that a stream of weights can have.
extern "C" __attribute__((visibility("default"))) int64_t trial_read(const uint8_t *w, int64_t bytes) {
  uint64_t sum = 0;
  for (int64_t i = 0; i + 64 <= bytes; i += 64) {
    _mm_prefetch(reinterpret_cast<const char *>(w) + i + 4096, _MM_HINT_T0);
    uint64_t word[8];
    std::memcpy(word, w + i, 64);
    for (uint64_t value : word) sum += value;
  }
  return static_cast<int64_t>(sum);
}
