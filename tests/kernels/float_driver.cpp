// Drives the float kernels of every ISA that runs here: against plain code in double precision, against the order of
// operations that mote.h fixes, bit for bit between ISAs, and attention bit for bit however a sequence is cut. Every
// buffer is a heap block of exactly the size in use, with NaN wherever a kernel must not look or must write, so that
// under ASan one byte beyond is an error. Prints "N passed, 0 failed" or the first difference.
#include "float_driver.h"

namespace {
using namespace driver;

// Weights as they lie in a file, at an odd address, and the numbers that they are.
struct Weights {
  std::vector<uint8_t> bytes;
  Floats values;
  const uint8_t *data() const { return bytes.data() + 1; }
};

Weights weights(int32_t format, int64_t n) {
  Weights w;
  w.values = numbers(n);
  w.bytes.push_back(0);
  for (float &v : w.values) {
    if (format == MOTE_BF16) v = nearest_bf16(v);
    uint8_t raw[4];
    std::memcpy(raw, &v, 4);
    w.bytes.insert(w.bytes.end(), raw + (format == MOTE_BF16 ? 2 : 0), raw + 4);
  }
  w.bytes.shrink_to_fit();
  return w;
}

// The order of operations of mote_linear_f32.
float dot_in_order(const float *w, const float *x, int64_t n) {
  float sum[16] = {};
  for (int64_t k = 0; k < n; ++k) sum[k % 16] = std::fma(w[k], x[k], sum[k % 16]);
  for (int h = 8; h > 0; h /= 2)
    for (int j = 0; j < h; ++j) sum[j] += sum[j + h];
  return sum[0];
}

void rows_dot(const Named &isa, int32_t format, int64_t rows, int64_t cols, int64_t tokens) {
  const Weights w = weights(format, rows * cols);
  const int64_t stride = cols + 3, y_stride = rows + 2;
  const Floats x = numbers((tokens - 1) * stride + cols);
  Floats y(static_cast<size_t>((tokens - 1) * y_stride + rows), kNan);
  isa.kernels->rows_dot(format, w.data(), rows, cols, x.data(), stride, tokens, y.data(), y_stride);
  const std::string what = at("rows_dot", isa.name, {format, rows, cols, tokens});
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t r = 0; r < rows; ++r) {
      const float *row = w.values.data() + r * cols, *token = x.data() + t * stride, got = y[t * y_stride + r];
      double exact = 0, size = 0;
      for (int64_t k = 0; k < cols; ++k) {
        const double product = double{row[k]} * token[k];
        exact += product, size += std::fabs(product);
      }
      if (!(std::fabs(got - exact) <= 1e-6 * size)) check(false, what + ": value");
      if (got != dot_in_order(row, token, cols)) check(false, what + ": order");
    }
  for (int64_t i = 0; i < static_cast<int64_t>(y.size()); ++i)
    if (i % y_stride >= rows && !std::isnan(y[i])) check(false, what + ": wrote between rows");
  check(true, what);
}

// csrc/mote.h: mote_quantize_activation, operation by operation.
void quantize(const Named &isa, Floats x) {
  const auto n = static_cast<int64_t>(x.size());
  std::vector<int8_t> q(x.size(), 99);
  float s = kNan, a = 0;
  int32_t sum = -1, total = 0;
  isa.kernels->quantize(x.data(), n, q.data(), &s, &sum);
  const std::string what = at("quantize", isa.name, {n});
  bool finite = true;
  for (float v : x) finite = finite && std::isfinite(v), a = std::fmax(a, std::fabs(v));
  if (!finite) {
    for (int8_t v : q) check(v == 0, what + ": not zero beside a NaN or Inf");
    check(!std::isfinite(s) && sum == 0, what + ": hid a NaN or Inf");
    return;
  }
  a = std::fmax(a, 1e-5f);
  const float inverse = 127.0f / a;
  for (int64_t i = 0; i < n; ++i) {
    const float v = std::nearbyint(x[i] * inverse);
    if (q[i] != (v > 127 ? 127 : v < -128 ? -128 : v)) check(false, what + ": value");
    total += q[i];
  }
  check(s == a / 127.0f && sum == total, what + ": scale or sum");
}

void rms_norm(const Named &isa, int64_t n, Floats *first) {
  rng.seed(static_cast<uint32_t>(n));
  Floats x = numbers(n, 3.0f), y(x.size(), kNan);
  const Floats weight = numbers(n);
  isa.kernels->rms_norm(x.data(), weight.data(), 1e-6f, n, y.data());
  double squares = 0;
  for (float v : x) squares += double{v} * v;
  for (int64_t i = 0; i < n; ++i)
    if (!close(y[i], x[i] / std::sqrt(squares / n + 1e-6) * weight[i], 1e-6, 0))
      check(false, at("rms_norm", isa.name, {n, i}));
  isa.kernels->rms_norm(x.data(), weight.data(), 1e-6f, n, x.data());
  check(same_bits(x, y), at("rms_norm in place", isa.name, {n}));
  if (first->empty()) *first = y;
  check(same_bits(*first, y), at("rms_norm between ISAs", isa.name, {n}));
}

void rotate(const Named &isa, int64_t head_dim) {
  const int64_t half = head_dim / 2;
  Floats x = numbers(head_dim), before = x;
  const Floats cos = numbers(half), sin = numbers(half);
  isa.kernels->rotate(x.data(), cos.data(), sin.data(), head_dim);
  for (int64_t i = 0; i < half; ++i) {
    const float a = before[i], b = before[half + i];
    const float ac = a * cos[i], bs = b * sin[i], bc = b * cos[i], as = a * sin[i];
    if (x[i] != ac - bs || x[half + i] != bc + as) check(false, at("rotate", isa.name, {head_dim, i}));
  }
  check(true, "rotate");
}

void silu_multiply(const Named &isa, Floats *first) {
  Floats g;
  for (float v = -200; v < 200; v += 0.0137f) g.push_back(v);
  for (float v : {0.0f, -0.0f, 1e-30f, -1e-30f, 1e-45f, 1e30f, -1e30f, -87.3f, -88.8f, -103.9f, kInf, 3e38f})
    g.push_back(v);
  const Floats ones(g.size(), 1.0f);
  Floats y(g.size(), kNan);
  isa.kernels->silu_multiply(g.data(), ones.data(), static_cast<int64_t>(g.size()), y.data());
  for (size_t i = 0; i < g.size(); ++i) {
    const double exact = g[i] == kInf ? double{kInf} : g[i] / (1 + std::exp(-double{g[i]}));
    const float ulp = std::nextafter(std::fabs(static_cast<float>(exact)), kInf) - std::fabs(static_cast<float>(exact));
    // Below e^-87 the exponential itself is rounded to a multiple of 2^-149.
    const double allowed = g[i] < -87 ? std::fabs(g[i]) * 0x1p-149 + 3 * ulp : 3 * ulp;
    if (y[i] != exact && !(std::fabs(y[i] - exact) <= allowed))
      check(false, "silu of " + std::to_string(g[i]) + " on " + isa.name);
  }
  if (first->empty()) *first = y;
  check(same_bits(*first, y), at("silu between ISAs", isa.name, {}));
  for (int64_t n : {1, 5, 16, 35}) {
    Floats x = numbers(n), u = numbers(n), z(x.size(), kNan), silu(x.size(), kNan);
    x[0] = n == 5 ? kNan : x[0];
    isa.kernels->silu_multiply(x.data(), ones.data(), n, silu.data());
    isa.kernels->silu_multiply(x.data(), u.data(), n, z.data());
    isa.kernels->silu_multiply(x.data(), u.data(), n, x.data());
    for (int64_t i = 0; i < n; ++i)
      if (n == 5 && i == 0 ? !std::isnan(z[i]) : z[i] != silu[i] * u[i] || x[i] != z[i])
        check(false, at("silu_multiply", isa.name, {n, i}));
    isa.kernels->add_scaled(0.37f, u.data(), n, z.data());
    for (int64_t i = 1; i < n; ++i) {
      const float product = 0.37f * u[i];
      if (z[i] != x[i] + product) check(false, at("add_scaled", isa.name, {n, i}));
    }
    check(true, "silu_multiply");
  }
}
}  // namespace

int main() {
  using namespace driver;
  const std::vector<Named> isas = usable();
  Floats silu;
  std::vector<Floats> norms(6);
  for (const Named &isa : isas) {
    for (int32_t format : {MOTE_BF16, MOTE_F32}) {
      for (int64_t rows : {1, 4, 7, 9})
        for (int64_t cols : {1, 15, 16, 32, 49, 100})
          for (int64_t tokens : {1, 2, 4, 5, 6, 7, 11}) rows_dot(isa, format, rows, cols, tokens);
      for (int64_t cols : {511, 512, 1061})
        for (int64_t tokens : {1, 4, 50}) rows_dot(isa, format, 13, cols, tokens);
    }
    rng.seed(5);
    for (int64_t n : {1, 3, 16, 17, 64, 577}) quantize(isa, numbers(n, 2.0f));
    quantize(isa, numbers(40, 1e-7f));
    quantize(isa, {127.0f, 0.5f, 1.5f, 2.5f, -0.5f, -126.5f, -127.0f});
    for (float bad : {kNan, kInf, -kInf}) quantize(isa, {1.0f, bad, 3.0f});
    const int64_t widths[] = {1, 7, 16, 33, 64, 896};
    for (size_t i = 0; i < norms.size(); ++i) rms_norm(isa, widths[i], &norms[i]);
    for (int64_t head_dim : {2, 16, 64, 80, 128, 130}) rotate(isa, head_dim);
    silu_multiply(isa, &silu);
  }
  attention(isas);
  std::string names;
  for (const Named &isa : isas) names += std::string(" ") + isa.name;
  std::printf("%d passed, 0 failed on%s\n", passed, names.c_str());
}
