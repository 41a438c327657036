// Drives the C interface at awkward shapes on every ISA and compares with a naive product; `make sanitize` builds it
// with ASan and UBSan. Every buffer is a heap block of exactly the size that mote.h promises to touch, so that one byte
// read or written beyond it is an error. Prints "N passed, 0 failed on ISAs" or the first difference.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "native_driver.h"

namespace {

int64_t passed = 0;
std::mt19937 rng(7);

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

// A matrix whose scales are multiples of 1/4, and activations whose quantisation is exact, so that every product and
// every sum is exact in fp32 in any order.
struct Problem {
  Case c;
  std::string name;
  int64_t group, groups;  // the whole row where there are no groups
  std::unique_ptr<int8_t[]> q;
  std::unique_ptr<uint8_t[]> data;
  std::unique_ptr<float[]> scale_f32;
  std::unique_ptr<uint16_t[]> scale_bf16, zero_bf16;
  std::unique_ptr<float[]> bias;
  mote_matrix w;

  bool packed() const { return c.format != MOTE_BF16 && c.format != MOTE_F32; }
  bool scaled() const { return is_integers(c.format); }
  // How far the zero point lies below the middle of the codes: by halves, where bf16 has them beside the middle.
  float shift(int64_t n, int64_t g) const {
    return (c.format == MOTE_UINT8 ? 1.0f : 0.5f) * static_cast<float>((n + g) % 5 - 2);
  }
  float level(int64_t n, int64_t k) const {
    const auto q_nk = static_cast<float>(q[n * c.cols + k]);
    return w.zero ? q_nk + shift(n, k / group) : q_nk;
  }
  float scale(int64_t n, int64_t k) const {
    if (!packed()) return 1;
    return 0.25f * static_cast<float>((w.granularity == MOTE_TENSOR ? 0 : n * groups + k / group) % 7 + 1);
  }
  void fill_weights();
  void fill_scales();
};

uint16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<uint16_t>(bits >> 16);
}

void Problem::fill_weights() {
  const int64_t n = c.rows, k = c.cols, low = lowest(c.format), high = highest(c.format);
  q = block<int8_t>(n * k);
  for (int64_t i = 0; i < n * k; ++i) q[i] = static_cast<int8_t>(static_cast<int64_t>(rng() % (high - low + 1)) + low);
  const int64_t bytes = mote_packed_bytes(c.format, n, k, c.group);
  if (bytes < 0) stop("packed_bytes " + name);
  data = block<uint8_t>(bytes);
  w.data = data.get();
  w.bytes = bytes;
  if (packed()) {
    if (mote_pack(c.format, n, k, c.group, q.get(), k, data.get(), bytes)) stop("pack " + name);
    auto again = block<int8_t>(n * k);
    if (mote_unpack(&w, again.get(), k)) stop("unpack " + name);
    for (int64_t i = 0; i < n * k; ++i)
      if (q[i] != again[i]) stop("round trip " + name);
    return;
  }
  for (int64_t i = 0; i < n * k; ++i) {
    const float value = q[i];
    const uint16_t half = to_bf16(value);
    if (c.format == MOTE_BF16) {
      std::memcpy(data.get() + 2 * i, &half, sizeof half);
    } else {
      std::memcpy(data.get() + 4 * i, &value, sizeof value);
    }
  }
}

void Problem::fill_scales() {
  const int64_t n = c.rows;
  w.granularity = c.group ? MOTE_GROUP : n % 2 ? MOTE_ROW : MOTE_TENSOR;
  if (scaled()) {
    w.scales = (n + 63) / 64 * groups * 64;
    scale_bf16 = block<uint16_t>(w.scales);
    for (int64_t i = 0; i < w.scales; ++i) {
      const int64_t row = i / (64 * groups) * 64 + i % 64, g = i / 64 % groups;
      scale_bf16[i] = row < n ? to_bf16(scale(row, g * group)) : 0;
    }
    w.scale = scale_bf16.get();
    if (c.format != MOTE_INT8 && n % 2) {
      w.zeros = w.scales;
      zero_bf16 = block<uint16_t>(w.zeros);
      for (int64_t i = 0; i < w.zeros; ++i) {
        const int64_t row = i / (64 * groups) * 64 + i % 64, g = i / 64 % groups;
        zero_bf16[i] = to_bf16(static_cast<float>(-lowest(c.format)) - shift(row, g));
      }
      w.zero = zero_bf16.get();
    }
  } else if (packed()) {
    w.scales = w.granularity == MOTE_TENSOR ? 1 : n * groups;
    scale_f32 = block<float>(w.scales);
    for (int64_t i = 0; i < w.scales; ++i) scale_f32[i] = 0.25f * static_cast<float>(i % 7 + 1);
    w.scale = scale_f32.get();
  }
  bias = block<float>(n);
  for (int64_t i = 0; i < n; ++i) bias[i] = static_cast<float>(i % 3) * 0.5f;
  w.bias = bias.get();
}

Problem make(const Case &c, const std::string &isa) {
  Problem p{};
  p.c = c;
  p.name = c.name(isa.c_str());
  p.group = c.group ? c.group : c.cols;
  p.groups = (c.cols + p.group - 1) / p.group;
  p.w.rows = c.rows;
  p.w.cols = c.cols;
  p.w.group = c.group;
  p.w.format = c.format;
  p.fill_weights();
  p.fill_scales();
  return p;
}

void run_integers(const Problem &p) {
  const int64_t n = p.c.rows, k = p.c.cols, t = p.c.tokens;
  auto x = block<int8_t>(t * k);
  for (int64_t i = 0; i < t * k; ++i) x[i] = static_cast<int8_t>(rng());
  auto y = block<int32_t>(t * n);
  if (mote_matmul_i32(&p.w, x.get(), t, k, y.get(), n, p.c.threads)) stop("matmul " + p.name);
  for (int64_t ti = 0; ti < t; ++ti)
    for (int64_t ni = 0; ni < n; ++ni) {
      int32_t sum = 0;
      for (int64_t ki = 0; ki < k; ++ki) sum += p.q[ni * k + ki] * x[ti * k + ki];
      if (y[ti * n + ni] != sum) stop("integers " + p.name);
    }
}

// Every token and scale group holds a 127 times a power of two, so that its scale is that power.
void run_linear(const Problem &p) {
  const int64_t n = p.c.rows, k = p.c.cols, t = p.c.tokens;
  auto x = block<float>(t * k);
  for (int64_t i = 0; i < t * k; ++i) {
    const int64_t ki = i % k;
    const bool peak = p.scaled() ? ki % p.group == 0 : ki == 0;
    const int value = peak ? 127 : static_cast<int>(rng() % 7) - 3;
    x[i] = static_cast<float>(value) * static_cast<float>(1 << i / k % 3);
  }
  auto y = block<float>(t * n);
  if (mote_linear_f32(&p.w, x.get(), t, k, y.get(), n, p.c.threads)) stop("linear " + p.name);
  for (int64_t ti = 0; ti < t; ++ti)
    for (int64_t ni = 0; ni < n; ++ni) {
      double exact = p.bias[ni];
      for (int64_t ki = 0; ki < k; ++ki) exact += double{x[ti * k + ki]} * p.level(ni, ki) * p.scale(ni, ki);
      if (y[ti * n + ni] != static_cast<float>(exact)) stop("scaled " + p.name);
    }
}

void run_rows(const Problem &p) {
  const int64_t n = p.c.rows, k = p.c.cols;
  auto index = block<int64_t>(2);
  index[0] = n - 1;
  index[1] = n / 2;
  auto y = block<float>(2 * k);
  if (mote_rows_f32(&p.w, index.get(), 2, y.get(), k)) stop("rows " + p.name);
  for (int64_t i = 0; i < 2 * k; ++i)
    if (y[i] != p.level(index[i / k], i % k) * p.scale(index[i / k], i % k)) stop("rows " + p.name);
}

void run(const Case &c, const std::string &isa) {
  const Problem p = make(c, isa);
  if (p.packed()) run_integers(p);
  run_linear(p);
  if (p.scaled() || !p.packed()) run_rows(p);
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

// The same product again and again on three threads.
void repeat_product() {
  const int64_t n = 330, k = 1400, t = 9;  // enough work that other threads join in
  auto q = block<int8_t>(n * k);
  for (int64_t j = 0; j < n * k; ++j) q[j] = 1;
  const int64_t bytes = mote_packed_bytes(MOTE_BASE3, n, k, 0);
  auto data = block<uint8_t>(bytes);
  if (mote_pack(MOTE_BASE3, n, k, 0, q.get(), k, data.get(), bytes)) stop("pack");
  const mote_matrix w = matrix(data.get(), bytes, n, k, 0, MOTE_BASE3);
  auto x = block<int8_t>(t * k);
  for (int64_t j = 0; j < t * k; ++j) x[j] = 2;
  auto y = block<int32_t>(t * n);
  for (int repeat = 0; repeat < 10; ++repeat) {
    if (mote_matmul_i32(&w, x.get(), t, k, y.get(), n, 3)) stop("matmul");
    for (int64_t j = 0; j < t * n; ++j)
      if (y[j] != 2 * k) stop("repeated product");
  }
}

// Callers on several threads at once share one pool; a forked child, which inherits none of its threads, gets a new one.
// qemu's user mode loses a child that is forked beside other threads, so that an emulator asks for no fork.
void concurrency(bool may_fork) {
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) callers.emplace_back(repeat_product);
  for (std::thread &caller : callers) caller.join();
  ++passed;
  if (!may_fork) return;
  const pid_t child = fork();
  if (child == 0) {
    repeat_product();
    _exit(0);
  }
  int status = 0;
  if (waitpid(child, &status, 0) != child || status != 0) stop("a forked child");
  ++passed;
}

std::vector<int64_t> groups_of(int32_t format) {
  if (format == MOTE_BF16 || format == MOTE_F32) return {0};
  if (is_integers(format)) return group_step(format) > 8 ? std::vector<int64_t>{group_step(format), 64, 320}
                                                          : std::vector<int64_t>{8, 64, 328};
  return {0, 32};
}
}  // namespace

int main(int count, char **arguments) {
  std::istringstream names(mote_isas());
  for (std::string isa; names >> isa;) {
    if (mote_select_isa(isa.c_str())) stop("select " + isa);
    for (int32_t format = MOTE_2BIT; format <= MOTE_UINT8; ++format)
      for (int64_t rows : {1, 63, 64, 65, 130})
        for (int64_t cols : {1, 7, 16, 20, 33, 257, 421})
          for (int64_t group : groups_of(format))
            for (int64_t tokens : {1, 2, 5, 13}) run({format, rows, cols, group, tokens, 1 + int32_t(tokens % 2)}, isa);
    run({MOTE_2BIT, 66, 40, 0, 487, 3}, isa);
    run({MOTE_BASE3, 66, 40, 16, 487, 3}, isa);
    run({MOTE_BASE3, 333, 1033, 0, 13, 3}, isa);
    run({MOTE_INT4, 66, 40, 32, 487, 3}, isa);
    run({MOTE_INT8, 333, 1033, 64, 13, 3}, isa);
    run({MOTE_INT3, 67, 40, 32, 487, 3}, isa);
    run({MOTE_UINT8, 333, 1033, 64, 13, 3}, isa);
  }
  if (mote_select_isa("no such") != MOTE_UNSUPPORTED) stop("an unknown ISA was accepted");
  activations();
  passed += compare_isas();
  passed += compare_layers();
  passed += refusals();
  concurrency(count < 2 || std::strcmp(arguments[1], "--no-fork") != 0);
  std::printf("%lld passed, 0 failed on %s\n", static_cast<long long>(passed), mote_isas());
}
