// Speed of the float kernels of one ISA on one thread, best of several, beside what the machine can do in the same run:
//   c++ -std=c++17 -O3 -mavx2 -mfma -ffp-contract=off -DMOTE_X86 -Icsrc -o build/float_kernels
//       benchmarks/float_kernels.cpp csrc/isa/floats_avx2.cpp && build/float_kernels
#include <immintrin.h>

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <random>
#include <vector>

#include "isa/isa.h"
#include "mote.h"

namespace {

const mote::FloatKernels &kernels = mote::kAvx2Floats;

double seconds() {  // of this thread's own time, since machines are shared
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

template <class F>
double best(int times, F f) {
  double least = 1e9;
  for (int i = 0; i < times; ++i) {
    const double start = seconds();
    f();
    const double took = seconds() - start;
    least = took < least ? took : least;
  }
  return least;
}

std::vector<float> numbers(int64_t n) {
  std::mt19937 rng(1);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<size_t>(n));
  for (float &v : x) v = normal(rng);
  return x;
}

volatile float sink;

// Four streams: one alone reads a little more than half as fast here.
void read_all(const uint8_t *p, int64_t n) {
  __m256i sum[4] = {};
  for (int64_t i = 0; i < n / 4; i += 32)
#pragma GCC unroll 4
    for (int s = 0; s < 4; ++s)
      sum[s] = _mm256_or_si256(sum[s], _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p + s * (n / 4) + i)));
  sink = static_cast<float>(_mm256_extract_epi8(_mm256_or_si256(_mm256_or_si256(sum[0], sum[1]),
                                                               _mm256_or_si256(sum[2], sum[3])), 0));
}

void peak() {
  __m256 a[12], x = _mm256_set1_ps(1e-9f);
  for (auto &v : a) v = x;
  const double took = best(20, [&] {
    for (int i = 0; i < 100000; ++i)
#pragma GCC unroll 12
      for (auto &v : a) v = _mm256_fmadd_ps(v, x, x);
  });
  for (auto &v : a) sink = _mm256_cvtss_f32(v);
  std::printf("fused multiply-add peak           %6.1f GMAC/s\n", 100000 * 12 * 8 / took * 1e-9);
}

void gemv(int64_t cols, int64_t tokens) {
  const int64_t bytes = int64_t{256} << 20;
  static std::vector<uint8_t> w(bytes, 0x3c);
  const auto x = numbers(cols * tokens);
  for (int32_t format : {MOTE_BF16, MOTE_F32}) {
    const int64_t row_bytes = cols * (format == MOTE_BF16 ? 2 : 4), rows = bytes / row_bytes;
    std::vector<float> y(rows * tokens);
    double read = 1e9, dot = 1e9;
    for (int i = 0; i < 8; ++i) {
      read = std::min(read, best(1, [&] { read_all(w.data(), bytes); }));
      dot = std::min(dot, best(1, [&] {  // by chunks of 64 rows, as tasks take them
        for (int64_t r = 0; r + 64 <= rows; r += 64)
          kernels.rows_dot(format, w.data() + r * row_bytes, 64, cols, x.data(), cols, tokens, y.data() + r, rows);
      }));
    }
    std::printf("rows_dot %s K %5ld, %3ld tokens  %6.1f GB/s; plain read %6.1f GB/s; %.0f %%\n",
                format == MOTE_BF16 ? "bf16" : "f32 ", cols, tokens, bytes / dot * 1e-9, bytes / read * 1e-9,
                100 * read / dot);
  }
}

void gemm(int64_t cols, int64_t tokens) {
  const int64_t rows = 256;
  const auto x = numbers(cols * tokens), w = numbers(rows * cols);
  std::vector<float> y(rows * tokens);
  const auto *bytes = reinterpret_cast<const uint8_t *>(w.data());
  for (int32_t format : {MOTE_BF16, MOTE_F32}) {
    const double took = best(tokens > 100 ? 10 : 40, [&] {
      for (int64_t r = 0; r < rows; r += 64)
        kernels.rows_dot(format, bytes + r * cols * (format == MOTE_BF16 ? 2 : 4), 64, cols, x.data(), cols, tokens,
                         y.data() + r, rows);
    });
    std::printf("rows_dot %s K %5ld, %3ld tokens  %6.1f GMAC/s\n", format == MOTE_BF16 ? "bf16" : "f32 ", cols, tokens,
                rows * cols * tokens / took * 1e-9);
  }
}

void attend(int64_t head_dim, int64_t heads, int64_t start, int64_t tokens, int64_t call) {
  const int64_t places = (start + tokens + 31) / 32;
  const auto q = numbers(tokens * heads * head_dim), k = numbers(head_dim);
  std::vector<float> out(q.size()), scratch(kernels.attend_scratch(start + tokens));
  for (int32_t format : {MOTE_BF16, MOTE_F32}) {
    const int64_t part = 32 * head_dim * (format == MOTE_BF16 ? 2 : 4);
    std::vector<std::vector<uint8_t>> blocks(places, std::vector<uint8_t>(2 * part));
    std::vector<void *> pointers;
    for (auto &block : blocks) pointers.push_back(block.data());
    for (int64_t p = 0; p < places * 32; ++p)
      kernels.store_kv(k.data(), k.data(), head_dim, p % 32, format, pointers[p / 32],
                       static_cast<uint8_t *>(pointers[p / 32]) + part);
    const double took = best(tokens > 1 ? 10 : 100, [&] {
      for (int64_t first = 0; first < tokens; first += call)
        kernels.attend({q.data(), out.data(), heads * head_dim, heads, first, std::min(call, tokens - first), start,
                        head_dim, pointers.data(), 0, part, format, 0.1f}, scratch.data());
    });
    const double pairs = static_cast<double>(tokens) * start + tokens * (tokens + 1) / 2.0;
    std::printf("attend %s D %3ld, %ld heads, %4ld + %3ld tokens  %6.1f GMAC/s\n",
                format == MOTE_BF16 ? "bf16" : "f32 ", head_dim, heads, start, tokens,
                2 * pairs * heads * head_dim / took * 1e-9);
  }
}

void rows() {
  const int64_t n = 4864;
  auto g = numbers(n), u = numbers(n), y = g;
  std::vector<int8_t> q(n);
  float s;
  int32_t sum;
  const double silu = best(50, [&] { kernels.silu_multiply(g.data(), u.data(), n, y.data()); });
  const double quantize = best(50, [&] { kernels.quantize(g.data(), n, q.data(), &s, &sum); });
  const double norm = best(50, [&] { kernels.rms_norm(g.data(), u.data(), 1e-6f, n, y.data()); });
  std::printf("of 4864 numbers, ns each: silu_multiply %.2f, quantize %.2f, rms_norm %.2f\n", silu / n * 1e9,
              quantize / n * 1e9, norm / n * 1e9);
}
}  // namespace

int main() {
  peak();
  for (int64_t cols : {896, 1536, 8960})
    for (int64_t tokens : {1, 2, 4}) gemv(cols, tokens);
  for (int64_t cols : {896, 4864})
    for (int64_t tokens : {4, 8, 64, 729}) gemm(cols, tokens);
  for (int64_t call : {8, 64}) {
    attend(64, 7, 0, 729, call);
    attend(128, 6, 0, 729, call);
  }
  attend(64, 7, 1000, 1, 1);
  attend(128, 6, 1000, 1, 1);
  rows();
  peak();
}
