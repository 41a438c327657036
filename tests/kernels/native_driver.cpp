// Drives the C interface at awkward shapes on every ISA and compares with a naive product; `make sanitize` builds it
// with ASan and UBSan. Every buffer is a heap block of exactly the size that mote.h promises to touch, so that one byte
// read or written beyond it is an error. Prints "N passed, 0 failed" or the first difference.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "mote.h"

namespace {

int passed = 0;
std::mt19937 rng(7);

template <class T>
std::unique_ptr<T[]> block(int64_t n) {
  return std::unique_ptr<T[]>(new T[static_cast<size_t>(n)]);
}

[[noreturn]] void stop(const std::string &what) {
  std::printf("FAILED: %s (%s)\n", what.c_str(), mote_last_error());
  std::exit(1);
}

struct Case {
  int32_t format;
  int64_t rows, cols, group, tokens;
  int32_t threads;
  std::string name(const char *isa) const {
    std::ostringstream out;
    out << isa << " format " << format << " [" << rows << ", " << cols << "] group " << group << " tokens " << tokens
        << " threads " << threads;
    return out.str();
  }
};

void run(const Case &c, const std::string &isa) {
  const int64_t n = c.rows, k = c.cols, t = c.tokens;
  auto q = block<int8_t>(n * k);
  auto x = block<int8_t>(t * k);
  for (int64_t i = 0; i < n * k; ++i) q[i] = static_cast<int8_t>(rng() % 3) - 1;
  for (int64_t i = 0; i < t * k; ++i) x[i] = static_cast<int8_t>(rng());

  const int64_t bytes = mote_packed_bytes(c.format, n, k, c.group);
  if (bytes < 0) stop("packed_bytes " + c.name(isa.c_str()));
  auto data = block<uint8_t>(bytes);
  if (mote_pack(c.format, n, k, c.group, q.get(), k, data.get(), bytes)) stop("pack " + c.name(isa.c_str()));
  const mote_matrix w = {data.get(), bytes, n, k, c.group, c.format};
  auto again = block<int8_t>(n * k);
  if (mote_unpack(&w, again.get(), k)) stop("unpack " + c.name(isa.c_str()));
  for (int64_t i = 0; i < n * k; ++i)
    if (q[i] != again[i]) stop("round trip " + c.name(isa.c_str()));

  auto y = block<int32_t>(t * n);
  if (mote_ternary_matmul_i32(&w, x.get(), t, k, y.get(), n, c.threads)) stop("matmul " + c.name(isa.c_str()));
  const int64_t groups = c.group ? (k + c.group - 1) / c.group : 1;
  const int32_t granularity = c.group ? MOTE_GROUP : n % 2 ? MOTE_ROW : MOTE_TENSOR;
  const int64_t scales = c.group ? n * groups : granularity == MOTE_ROW ? n : 1;
  auto scale = block<float>(scales);
  auto s = block<float>(t);
  auto f = block<float>(t * n);
  for (int64_t i = 0; i < scales; ++i) scale[i] = static_cast<float>(i % 7 + 1) * 0.25f;
  for (int64_t i = 0; i < t; ++i) s[i] = static_cast<float>(i % 5 + 1) * 0.5f;
  if (mote_ternary_linear_f32(&w, scale.get(), scales, granularity, x.get(), t, k, s.get(), f.get(), n, c.threads))
    stop("linear " + c.name(isa.c_str()));

  const int64_t group = c.group ? c.group : k;
  for (int64_t ti = 0; ti < t; ++ti)
    for (int64_t ni = 0; ni < n; ++ni) {
      int32_t sum = 0;
      double exact = 0;  // these scales are multiples of 1/4, so that the sums are exact in fp32 too
      for (int64_t ki = 0; ki < k; ++ki) {
        const int32_t product = q[ni * k + ki] * x[ti * k + ki];
        sum += product;
        const int64_t g = ki / group;
        exact += product * double{scale[granularity == MOTE_TENSOR ? 0 : ni * groups + g]};
      }
      if (y[ti * n + ni] != sum) stop("integers " + c.name(isa.c_str()));
      if (f[ti * n + ni] != static_cast<float>(exact * s[ti])) stop("scaled " + c.name(isa.c_str()));
    }
  ++passed;
}

void activations() {
  for (int64_t cols : {1, 3, 17, 64, 577}) {
    auto x = block<float>(3 * cols);
    auto x_q = block<int8_t>(3 * cols);
    auto s = block<float>(3);
    for (int64_t i = 0; i < 3 * cols; ++i) x[i] = static_cast<float>(static_cast<int32_t>(rng())) * 1e-6f;
    if (mote_quantize_activation(x.get(), 3, cols, cols, x_q.get(), cols, s.get())) stop("quantize_activation");
    ++passed;
  }
}

// Sizes that must be refused without a look at memory: the pointers are wild.
void refusals() {
  const auto *wild = reinterpret_cast<const uint8_t *>(16);
  const auto *x = reinterpret_cast<const int8_t *>(16);
  auto *y = reinterpret_cast<int32_t *>(16);
  const mote_matrix bad[] = {
      {nullptr, 1024, 64, 16, 0, MOTE_2BIT},          {wild, 255, 64, 16, 0, MOTE_2BIT},
      {wild, 256, 65, 16, 0, MOTE_2BIT},              {wild, 256, 0, 16, 0, MOTE_2BIT},
      {wild, 256, 64, -16, 0, MOTE_2BIT},             {wild, 256, 64, 16, 7, MOTE_2BIT},
      {wild, 256, 64, 16, -20, MOTE_BASE3},           {wild, 256, 64, 16, 0, 9},
      {wild, INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX, MOTE_BASE3}, {wild, 256, INT64_MIN, INT64_MIN, 0, MOTE_BASE3},
  };
  for (const mote_matrix &w : bad) {
    if (mote_ternary_matmul_i32(&w, x, 1, 16, y, 64, 1) != MOTE_BAD_ARGUMENT) stop("a bad matrix was accepted");
    ++passed;
  }
  const mote_matrix w = {wild, 256, 64, 16, 0, MOTE_2BIT};
  const bool refused = mote_ternary_matmul_i32(&w, x, -1, 16, y, 64, 1) && mote_ternary_matmul_i32(&w, x, 1, 15, y, 64, 1) &&
                       mote_ternary_matmul_i32(&w, x, 1, 16, y, 63, 1) && mote_ternary_matmul_i32(&w, x, 1, 16, y, 64, 0) &&
                       mote_ternary_matmul_i32(nullptr, x, 1, 16, y, 64, 1);
  if (!refused) stop("bad sizes were accepted");
  ++passed;
}

// The same product again and again on three threads.
void repeat_product() {
  const int64_t n = 330, k = 1400, t = 9;  // enough work that other threads join in
  auto q = block<int8_t>(n * k);
  for (int64_t j = 0; j < n * k; ++j) q[j] = 1;
  const int64_t bytes = mote_packed_bytes(MOTE_BASE3, n, k, 0);
  auto data = block<uint8_t>(bytes);
  if (mote_pack(MOTE_BASE3, n, k, 0, q.get(), k, data.get(), bytes)) stop("pack");
  const mote_matrix w = {data.get(), bytes, n, k, 0, MOTE_BASE3};
  auto x = block<int8_t>(t * k);
  for (int64_t j = 0; j < t * k; ++j) x[j] = 2;
  auto y = block<int32_t>(t * n);
  for (int repeat = 0; repeat < 10; ++repeat) {
    if (mote_ternary_matmul_i32(&w, x.get(), t, k, y.get(), n, 3)) stop("matmul");
    for (int64_t j = 0; j < t * n; ++j)
      if (y[j] != 2 * k) stop("repeated product");
  }
}

// Callers on several threads at once share one pool; a forked child, which inherits none of its threads, gets a new one.
void concurrency() {
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) callers.emplace_back(repeat_product);
  for (std::thread &caller : callers) caller.join();
  const pid_t child = fork();
  if (child == 0) {
    repeat_product();
    _exit(0);
  }
  int status = 0;
  if (waitpid(child, &status, 0) != child || status != 0) stop("a forked child");
  passed += 2;
}
}  // namespace

int main() {
  std::istringstream names(mote_isas());
  for (std::string isa; names >> isa;) {
    if (mote_select_isa(isa.c_str())) stop("select " + isa);
    for (int32_t format : {MOTE_2BIT, MOTE_BASE3})
      for (int64_t rows : {1, 63, 64, 65, 130})
        for (int64_t cols : {1, 7, 16, 20, 33, 257, 421})
          for (int64_t group : {0, 32})
            for (int64_t tokens : {1, 2, 5, 13}) run({format, rows, cols, group, tokens, 1 + int32_t(tokens % 2)}, isa);
    run({MOTE_2BIT, 66, 40, 0, 487, 3}, isa);
    run({MOTE_BASE3, 66, 40, 16, 487, 3}, isa);
    run({MOTE_BASE3, 333, 1033, 0, 13, 3}, isa);
  }
  if (mote_select_isa("no such") != MOTE_UNSUPPORTED) stop("an unknown ISA was accepted");
  activations();
  refusals();
  concurrency();
  std::printf("%d passed, 0 failed\n", passed);
}
