// Packed ternary matrices times int8 activations: sizes, padding, threads and scales around one ISA's strip products.
//
// Work is cut into (strip of 64 rows, block of tokens). A kernel returns sum digit * x with digits 0..2; taking the sum
// of x away leaves sum weight * x. Legend: N rows, K cols, T tokens, R the 64 rows of a strip.
#include <algorithm>
#include <cinttypes>
#include <cstring>
#include <memory>
#include <new>

#include "format.h"
#include "isa/isa.h"
#include "pool.h"
#include "status.h"

namespace mote {
namespace {

constexpr int64_t kTokenBlock = 240;  // int32 accumulators of a block: 60 KiB, beside a tile of weights in L2

struct Activations {
  const int8_t *x = nullptr;  // [T, kgs * per_group], the padding zero
  int64_t stride = 0;
  std::unique_ptr<int8_t[]> padded;
  std::unique_ptr<int32_t[]> sums;  // [T, scale groups]
};

// Lays the inputs of each scale group out from a fresh k-group (in place when they already are) and sums them.
int prepare(const mote_matrix &w, const Geometry &m, const int8_t *x_q, int64_t tokens, int64_t x_stride,
            Activations *a) {
  const int64_t width = m.kgs * m.per_group;
  a->x = x_q;
  a->stride = x_stride;
  a->sums.reset(new (std::nothrow) int32_t[static_cast<size_t>(tokens * m.scales)]);
  if (width != w.cols) {
    a->padded.reset(new (std::nothrow) int8_t[static_cast<size_t>(tokens * width)]());
    a->x = a->padded.get();
    a->stride = width;
  }
  if (!a->sums || !a->x) return fail(MOTE_NO_MEMORY, "no memory for %" PRId64 " tokens of activations", tokens);
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t g = 0; g < m.scales; ++g) {
      const int8_t *from = x_q + t * x_stride + m.first(g);
      const int64_t n = m.inputs(g, w.cols);
      int32_t sum = 0;
      for (int64_t i = 0; i < n; ++i) sum += from[i];
      a->sums[static_cast<size_t>(t * m.scales + g)] = sum;
      if (a->padded)
        std::memcpy(a->padded.get() + t * width + g * m.kgs_full * m.per_group, from, static_cast<size_t>(n));
    }
  return MOTE_OK;
}

struct Product {
  const Isa *isa;
  const mote_matrix *w;
  Geometry m;
  Activations a;
  int64_t tokens, block;
  const float *scale = nullptr, *s = nullptr;  // unused for plain integers
  int32_t granularity = MOTE_TENSOR;
  int32_t *y_i32 = nullptr;
  float *y_f32 = nullptr;
  int64_t y_stride;

  void run(int32_t threads);
  void task(int64_t i) const;
  void dot(int64_t strip, int64_t g, int64_t kgs, int64_t t0, int64_t tn, int32_t *acc_TR) const;
  void store_integers(int64_t n0, int64_t rows, int64_t t0, int64_t tn, const int32_t *acc_TR) const;
  void store_scaled(int64_t n0, int64_t rows, int64_t t0, int64_t tn, const int32_t *acc_TR) const;
  void add_group(int64_t g, int64_t n0, int64_t rows, int64_t t0, int64_t tn, const int32_t *acc_TR) const;
};

void Product::run(int32_t threads) {
  // Waking a thread costs about as much as a million products: the smallest matrices of one token stay on the caller.
  const int64_t products = m.strips * kStripRows * m.kgs * m.per_group * tokens;
  threads = static_cast<int32_t>(std::min<int64_t>(threads, 1 + (products >> 21)));
  // Small matrices have few strips: shorter blocks of tokens even out the work, down to where unpacking would show.
  block = std::min(tokens, kTokenBlock);
  while (threads > 1 && block > 60 && m.strips * ((tokens + block - 1) / block) < 8 * threads) block = (block + 1) / 2;
  const int64_t tasks = m.strips * ((tokens + block - 1) / block);
  parallel_for(threads, tasks, [](void *self, int64_t i) { static_cast<Product *>(self)->task(i); }, this);
}

void Product::dot(int64_t strip, int64_t g, int64_t kgs, int64_t t0, int64_t tn, int32_t *acc_TR) const {
  const int64_t kg0 = g * m.kgs_full;
  isa->dot(w->format, w->data + (strip * m.kgs + kg0) * kGroupBytes, kgs, a.x + t0 * a.stride + kg0 * m.per_group,
           a.stride, tn, acc_TR);
}

void Product::task(int64_t i) const {
  alignas(64) static thread_local int32_t acc_TR[kTokenBlock * kStripRows];
  const int64_t strip = i % m.strips, t0 = i / m.strips * block;
  const int64_t n0 = strip * kStripRows, rows = std::min(kStripRows, w->rows - n0), tn = std::min(block, tokens - t0);
  if (y_f32 && granularity == MOTE_GROUP) {
    for (int64_t g = 0; g < m.scales; ++g) {
      dot(strip, g, m.kgs_of(g, w->cols), t0, tn, acc_TR);
      add_group(g, n0, rows, t0, tn, acc_TR);
    }
    return;
  }
  dot(strip, 0, m.kgs, t0, tn, acc_TR);
  if (y_f32) {
    store_scaled(n0, rows, t0, tn, acc_TR);
  } else {
    store_integers(n0, rows, t0, tn, acc_TR);
  }
}

int32_t row_sum(const Activations &a, const Geometry &m, int64_t t) {
  int32_t sum = 0;
  for (int64_t g = 0; g < m.scales; ++g) sum += a.sums[static_cast<size_t>(t * m.scales + g)];
  return sum;
}

void Product::store_integers(int64_t n0, int64_t rows, int64_t t0, int64_t tn, const int32_t *acc_TR) const {
  for (int64_t t = 0; t < tn; ++t) {
    const int32_t sum = row_sum(a, m, t0 + t);
    int32_t *y = y_i32 + (t0 + t) * y_stride + n0;
    for (int64_t r = 0; r < rows; ++r) y[r] = acc_TR[t * kStripRows + r] - sum;
  }
}

void Product::store_scaled(int64_t n0, int64_t rows, int64_t t0, int64_t tn, const int32_t *acc_TR) const {
  for (int64_t t = 0; t < tn; ++t) {
    const int32_t sum = row_sum(a, m, t0 + t);
    const float s_t = s[t0 + t];
    float *y = y_f32 + (t0 + t) * y_stride + n0;
    const int32_t *acc = acc_TR + t * kStripRows;
    if (granularity == MOTE_TENSOR) {
      const float factor = s_t * scale[0];
      for (int64_t r = 0; r < rows; ++r) y[r] = static_cast<float>(acc[r] - sum) * factor;
    } else {
      for (int64_t r = 0; r < rows; ++r) y[r] = static_cast<float>(acc[r] - sum) * (s_t * scale[n0 + r]);
    }
  }
}

void Product::add_group(int64_t g, int64_t n0, int64_t rows, int64_t t0, int64_t tn, const int32_t *acc_TR) const {
  const bool first = g == 0, last = g + 1 == m.scales;
  for (int64_t t = 0; t < tn; ++t) {
    const int32_t sum = a.sums[static_cast<size_t>((t0 + t) * m.scales + g)];
    float *y = y_f32 + (t0 + t) * y_stride + n0;
    for (int64_t r = 0; r < rows; ++r) {
      const float term = static_cast<float>(acc_TR[t * kStripRows + r] - sum) * scale[(n0 + r) * m.scales + g];
      const float total = (first ? 0.0f : y[r]) + term;
      y[r] = last ? total * s[t0 + t] : total;
    }
  }
}

// Everything that both entry points check; MOTE_OK leaves *p ready to run.
int open(const mote_matrix *w, const int8_t *x_q, int64_t tokens, int64_t x_stride, const void *y, int64_t y_stride,
         int32_t threads, Product *p) {
  if (int status = measure(w, &p->m)) return status;
  if (tokens < 0 || tokens > (int64_t{1} << 31) || x_stride < w->cols || y_stride < w->rows)
    return fail(MOTE_BAD_ARGUMENT, "%" PRId64 " tokens with strides %" PRId64 " (in) and %" PRId64
                " (out) do not fit a matrix of %" PRId64 " x %" PRId64, tokens, x_stride, y_stride, w->rows, w->cols);
  if (tokens > 0 && (!x_q || !y)) return fail(MOTE_BAD_ARGUMENT, "activations or output are a null pointer");
  if (threads < 1) return fail(MOTE_BAD_ARGUMENT, "threads=%d: use 1 or more", threads);
  p->isa = chosen_isa();
  if (!p->isa) return MOTE_UNSUPPORTED;
  p->w = w;
  p->tokens = tokens;
  p->y_stride = y_stride;
  return prepare(*w, p->m, x_q, tokens, x_stride, &p->a);
}
}  // namespace
}  // namespace mote

using namespace mote;

extern "C" {

int mote_ternary_matmul_i32(const mote_matrix *w, const int8_t *x_q, int64_t tokens, int64_t x_stride, int32_t *y,
                            int64_t y_stride, int32_t threads) {
  Product p;
  if (int status = open(w, x_q, tokens, x_stride, y, y_stride, threads, &p)) return status;
  p.y_i32 = y;
  if (tokens > 0) p.run(threads);
  return MOTE_OK;
}

int mote_ternary_linear_f32(const mote_matrix *w, const float *scale, int64_t scales, int32_t granularity,
                            const int8_t *x_q, int64_t tokens, int64_t x_stride, const float *s, float *y,
                            int64_t y_stride, int32_t threads) {
  Product p;
  if (int status = open(w, x_q, tokens, x_stride, y, y_stride, threads, &p)) return status;
  if (granularity < MOTE_TENSOR || granularity > MOTE_GROUP || (granularity == MOTE_GROUP) != (w->group > 0))
    return fail(MOTE_BAD_ARGUMENT, "granularity %d with scale groups of %" PRId64 ": use 0 (tensor) or 1 (row) without"
                " groups, 2 with them", granularity, w->group);
  const int64_t expected = granularity == MOTE_TENSOR ? 1 : granularity == MOTE_ROW ? w->rows : w->rows * p.m.scales;
  if (scales != expected || !scale || (tokens > 0 && !s))
    return fail(MOTE_BAD_ARGUMENT, "%" PRId64 " weight scales where %" PRId64 " are needed, or a null pointer", scales,
                expected);
  p.scale = scale;
  p.s = s;
  p.granularity = granularity;
  p.y_f32 = y;
  if (tokens > 0) p.run(threads);
  return MOTE_OK;
}
}
