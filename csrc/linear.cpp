// Products of matrices of every format with activations, all of one call in one parallel region.
//
// Work is cut into (matrix, block of tokens, 64 rows), or for one token (matrix, neighbouring runs of 64 rows). Ternary
// kernels return sum digit * x with digits 0..2; taking the sum of x away leaves sum weight * x. Legend: N rows, K cols,
// T tokens, G scale groups, R the 64 rows of a strip.
#include "linear.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <new>

#include "pool.h"
#include "status.h"
#include "widths.h"

namespace mote {
namespace {

constexpr int64_t kTokenTile = 6;  // tokens that the kernels multiply together
static_assert(kTokenBlock % kTokenTile == 0, "blocks are rounded up to whole tiles");
// Weights are fetched well ahead of where they are read: a thread that decodes should read on where it has been.
constexpr int64_t kRunBytes = 128 << 10;
// Waking a thread costs about as much as two million products: the smallest matrices of one token stay on the caller.
constexpr double kThreadCost = 2 << 20;

struct Job {
  const Product *product;
  int64_t block;  // tokens of one task
  int64_t run;    // strips of one task
  int64_t end;    // tasks of this product and of those before it
};

// Strips `strip` .. `strip` + `strips` - 1 of a matrix times tokens t0 .. t0 + tn - 1 of an input, into out [tn, rows of
// the strips]. There is one strip, or one token.
struct Task {
  const Isa &isa;
  const Linear &linear;
  const Input &input;
  int64_t strip, strips, t0, tn;
  float *out;
  int64_t stride;

  const mote_matrix &w() const { return *linear.w; }
  const Geometry &m() const { return linear.m; }
  int64_t n0() const { return strip * kStripRows; }
  int64_t rows() const { return std::min(strips * kStripRows, w().rows - n0()); }
  float *y(int64_t t) const { return out + t * stride; }

  void run() const;
  void strip_by_strip() const;
  void ternary(const Form &form, int32_t *acc_TR) const;
  void ternary_grouped(const Form &form, int32_t *acc_TR) const;
  void scaled(const Form &form, float *y_TR) const;
  void add_bias() const;
};

void Task::run() const {
  alignas(64) static thread_local unsigned char scratch[kTokenBlock * kStripRows * 4];
  if (is_float(w().format)) {
    const int64_t row_bytes = w().cols * (w().format == MOTE_BF16 ? 2 : 4);
    isa.floats->rows_dot(w().format, w().data + n0() * row_bytes, rows(), w().cols, input.x() + t0 * input.stride(),
                         input.stride(), tn, out, stride);
  } else if (strips > 1 && (is_scaled(w().format) || w().granularity == MOTE_GROUP)) {
    return strip_by_strip();
  } else if (const Form &form = *input.form(linear); is_scaled(w().format)) {
    // Kernels write all 64 rows of a strip, which `out` may hold only where it has them.
    const bool whole = stride == kStripRows && rows() == kStripRows;
    scaled(form, whole ? out : reinterpret_cast<float *>(scratch));
  } else if (w().granularity == MOTE_GROUP) {
    ternary_grouped(form, reinterpret_cast<int32_t *>(scratch));
  } else {
    ternary(form, reinterpret_cast<int32_t *>(scratch));
  }
  if (w().bias) add_bias();
}

void Task::strip_by_strip() const {
  Task one = *this;
  for (one.strips = 1; one.strip < strip + strips; ++one.strip, one.out += kStripRows) one.run();
}

// Of one token acc_TR is [rows]. Between its strips there is nothing but the call: what else was done there cost up to a
// quarter of the time where strips are tall, since their weights fill the caches (studies/LOG.md, 2026-11-30).
void Task::ternary(const Form &form, int32_t *acc_TR) const {
  const int32_t format = w().format;
  const uint8_t *data = w().data + strip * m().strip_bytes();
  const int8_t *x = form.x + t0 * form.stride;
  const int64_t strip_bytes = m().strip_bytes(), groups = m().kgs, x_stride = form.stride;
  for (int64_t i = 0; i < strips; ++i)
    isa.dot(format, data + i * strip_bytes, groups, x, x_stride, tn, acc_TR + i * kStripRows);
  const auto *scale = static_cast<const float *>(w().scale);
  for (int64_t t = 0; t < tn; ++t) {
    const int32_t sum = form.sum[t0 + t];
    const float s = form.s[t0 + t];
    const int32_t *acc = acc_TR + t * kStripRows;
    float *y_R = y(t);
    if (w().granularity == MOTE_TENSOR) {
      const float factor = s * scale[0];
      for (int64_t r = 0; r < rows(); ++r) y_R[r] = static_cast<float>(acc[r] - sum) * factor;
    } else {
      for (int64_t r = 0; r < rows(); ++r) y_R[r] = static_cast<float>(acc[r] - sum) * (s * scale[n0() + r]);
    }
  }
}

void Task::ternary_grouped(const Form &form, int32_t *acc_TR) const {
  const auto *scale = static_cast<const float *>(w().scale) + n0() * m().scales;
  for (int64_t g = 0; g < m().scales; ++g) {
    const int64_t kg0 = g * m().kgs_full;
    isa.dot(w().format, w().data + (strip * m().kgs + kg0) * kGroupBytes, m().kgs_of(g, w().cols),
            form.x + t0 * form.stride + kg0 * m().per_group, form.stride, tn, acc_TR);
    const bool first = g == 0, last = g + 1 == m().scales;
    for (int64_t t = 0; t < tn; ++t) {
      const int32_t sum = form.sum[(t0 + t) * m().scales + g];
      float *y_R = y(t);
      for (int64_t r = 0; r < rows(); ++r) {
        const float term = static_cast<float>(acc_TR[t * kStripRows + r] - sum) * scale[r * m().scales + g];
        const float total = (first ? 0.0f : y_R[r]) + term;
        y_R[r] = last ? total * form.s[t0 + t] : total;
      }
    }
  }
}

void Task::scaled(const Form &form, float *y_TR) const {
  const int64_t first = strip * m().scales * kStripRows;
  ScaledStrip weights = {w().data + strip * m().strip_bytes(), static_cast<const uint16_t *>(w().scale) + first, w().cols,
                         w().group, m().scales, w().format};
  if (w().zero) weights.zero_GR = static_cast<const uint16_t *>(w().zero) + first;
  const GroupedInput x = {form.x + t0 * form.stride, form.stride, form.s + t0 * m().scales,
                          form.sum + t0 * m().scales};
  dot_integers(isa, weights, x, tn, y_TR);
  for (int64_t t = 0; t < tn && y_TR != out; ++t) std::copy_n(y_TR + t * kStripRows, rows(), y(t));
}

void Task::add_bias() const {
  const float *bias = w().bias + n0();
  for (int64_t t = 0; t < tn; ++t) {
    float *y_R = y(t);
    for (int64_t r = 0; r < rows(); ++r) y_R[r] += bias[r];
  }
}

struct Region {
  const Isa *isa;
  const Job *jobs;
  int64_t count;
  void task(int64_t i) const;
  void silu_multiply(const Task &task, const Linear &up) const;
};

void Region::task(int64_t i) const {
  const Job *job = std::upper_bound(jobs, jobs + count, i, [](int64_t v, const Job &j) { return v < j.end; });
  const Product &p = *job->product;
  const int64_t strips = p.linear->m.strips, runs = ceil_div(strips, job->run);
  const int64_t local = i - (job == jobs ? 0 : job[-1].end), t0 = local / runs * job->block;
  const int64_t first = local % runs * job->run, length = std::min(job->run, strips - first);
  const int64_t tn = std::min(job->block, p.tokens - t0);
  const Task own{*isa, *p.linear, *p.input, first, length, p.first + t0, tn,
                 p.y + t0 * p.y_stride + first * kStripRows, p.y_stride};
  p.up ? silu_multiply(own, *p.up) : own.run();
}

// silu(task) * (the same of `up`): both products of a block stay in L2.
void Region::silu_multiply(const Task &task, const Linear &up) const {
  alignas(64) static thread_local float gate_TR[kTokenBlock * kStripRows], up_TR[kTokenBlock * kStripRows];
  Task{*isa, task.linear, task.input, task.strip, task.strips, task.t0, task.tn, gate_TR, kStripRows}.run();
  Task{*isa, up, task.input, task.strip, task.strips, task.t0, task.tn, up_TR, kStripRows}.run();
  isa->floats->silu_multiply(gate_TR, up_TR, task.tn * task.strips * kStripRows, gate_TR);
  for (int64_t t = 0; t < task.tn; ++t) std::copy_n(gate_TR + t * kStripRows, task.rows(), task.y(t));
}

// Time of one multiplication, in those of a ternary one.
int64_t cost_of(int32_t format) {
  switch (format) {
    case MOTE_INT4: return 2;
    case MOTE_INT2: case MOTE_INT3: case MOTE_INT6: case MOTE_INT8: case MOTE_UINT8: return 4;
    case MOTE_BF16: return 8;
    case MOTE_F32: return 16;
    default: return 1;
  }
}

int64_t lay_out(Job *jobs, int64_t count, int64_t most, int32_t threads) {
  int64_t tasks = 0;
  for (Job *job = jobs; job < jobs + count; ++job) {
    const Geometry &m = job->product->linear->m;
    const int64_t tokens = std::max<int64_t>(job->product->tokens, 1);
    // Blocks of equal length: a short last one would unpack all weights again for a few tokens.
    job->block = round_up(ceil_div(tokens, ceil_div(tokens, most)), kTokenTile);
    job->run = 1;
    if (tokens == 1) {
      const int64_t run = threads > 1 ? std::min(kRunBytes / (m.strip_bytes() + 1), m.strips / (4 * threads)) : m.strips;
      job->run = std::clamp<int64_t>(run, 1, kTokenBlock);  // scratch memory holds as many strips of one token
    }
    tasks += ceil_div(m.strips, job->run) * ceil_div(job->product->tokens, job->block);
    job->end = tasks;
  }
  return tasks;
}
}  // namespace

int multiply(const Isa &isa, const Product *products, int64_t count, int32_t threads) {
  Job few[16];
  std::unique_ptr<Job[]> many;
  Job *jobs = few;
  if (count > 16) {
    many.reset(new (std::nothrow) Job[static_cast<size_t>(count)]);
    jobs = many.get();
    if (!jobs) return fail(MOTE_NO_MEMORY, "no memory for %" PRId64 " products", count);
  }
  double cost = 0;  // sizes may be absurd and still be consistent
  for (int64_t i = 0; i < count; ++i) {
    const Product &p = products[i];
    jobs[i].product = &p;
    for (const Linear *linear : {p.linear, p.up}) {
      if (!linear) continue;
      if (int status = p.input->prepare(isa, *linear, threads)) return status;
      cost += static_cast<double>(linear->m.strips * kStripRows * linear->w->cols) *
              static_cast<double>(p.tokens * cost_of(linear->w->format));
    }
  }
  threads = static_cast<int32_t>(std::min<double>(threads, 1 + cost / kThreadCost));
  // Small matrices have few strips: shorter blocks of tokens even out the work, down to where unpacking would show.
  int64_t block = kTokenBlock, tasks = lay_out(jobs, count, block, threads);
  while (threads > 1 && block > 60 && tasks < int64_t{8} * threads)
    tasks = lay_out(jobs, count, block = (block + 1) / 2, threads);
  Region region{&isa, jobs, count};
  parallel_for(threads, tasks, [](void *self, int64_t i) { static_cast<Region *>(self)->task(i); }, &region);
  return MOTE_OK;
}

namespace {
int check_scales(const mote_matrix &w, const Geometry &m) {
  int64_t expected = 0;
  if (is_ternary(w.format)) {
    if (w.granularity < MOTE_TENSOR || w.granularity > MOTE_GROUP || (w.granularity == MOTE_GROUP) != (w.group > 0))
      return fail(MOTE_BAD_ARGUMENT, "granularity %d with scale groups of %" PRId64 ": use 0 (tensor) or 1 (row) without"
                  " groups, 2 with them", w.granularity, w.group);
    expected = w.granularity == MOTE_TENSOR ? 1 : w.granularity == MOTE_ROW ? w.rows : w.rows * m.scales;
  } else if (is_scaled(w.format)) {
    if (w.granularity != MOTE_GROUP)
      return fail(MOTE_BAD_ARGUMENT, "granularity %d: integers have scales per group, 2", w.granularity);
    expected = m.strips * m.scales * kStripRows;
  }
  if (w.scales != expected || (expected > 0 && !w.scale))
    return fail(MOTE_BAD_ARGUMENT, "%" PRId64 " weight scales where %" PRId64 " are needed, or a null pointer", w.scales,
                expected);
  if (w.zero && (!is_scaled(w.format) || w.format == MOTE_INT8))
    return fail(MOTE_BAD_ARGUMENT, "format %d has no zero points; integers have, 8 bits of them as uint8", w.format);
  if (w.zeros != (w.zero ? expected : 0))
    return fail(MOTE_BAD_ARGUMENT, "%" PRId64 " zero points where %" PRId64 " are needed, or a null pointer", w.zeros,
                w.zero ? expected : 0);
  return MOTE_OK;
}
}  // namespace

int open_linear(const mote_matrix &w, const char *what, Linear *linear) {
  Geometry m{};
  int status = measure(&w, &m);
  if (!status) status = check_scales(w, m);
  if (status) {
    char message[256];
    std::snprintf(message, sizeof message, "%s", mote_last_error());
    return what ? fail(status, "%s: %s", what, message) : status;
  }
  linear->w = &w;
  linear->m = m;
  return MOTE_OK;
}

int check_call(const mote_matrix &w, const void *x, int64_t tokens, int64_t x_stride, const void *y, int64_t y_stride,
               int32_t threads) {
  if (tokens < 0 || tokens > (int64_t{1} << 31) || x_stride < w.cols || y_stride < w.rows)
    return fail(MOTE_BAD_ARGUMENT, "%" PRId64 " tokens with strides %" PRId64 " (in) and %" PRId64
                " (out) do not fit a matrix of %" PRId64 " x %" PRId64, tokens, x_stride, y_stride, w.rows, w.cols);
  if (!fits(tokens, x_stride) || !fits(tokens, y_stride))
    return fail(MOTE_BAD_ARGUMENT, "%" PRId64 " tokens with strides %" PRId64 " and %" PRId64 " exceed all memory",
                tokens, x_stride, y_stride);
  if (tokens > 0 && (!x || !y)) return fail(MOTE_BAD_ARGUMENT, "activations or output are a null pointer");
  if (threads < 1) return fail(MOTE_BAD_ARGUMENT, "threads=%d: use 1 or more", threads);
  return MOTE_OK;
}
}  // namespace mote

using namespace mote;

extern "C" int mote_linear_f32(const mote_matrix *w, const float *x, int64_t tokens, int64_t x_stride, float *y,
                               int64_t y_stride, int32_t threads) {
  Linear linear;
  if (!w) return fail(MOTE_BAD_ARGUMENT, "the packed matrix is a null pointer");
  if (int status = open_linear(*w, nullptr, &linear)) return status;
  if (int status = check_call(*w, x, tokens, x_stride, y, y_stride, threads)) return status;
  const Isa *isa = chosen_isa();
  if (!isa) return MOTE_UNSUPPORTED;
  if (tokens == 0) return MOTE_OK;
  Input input(x, tokens, w->cols, x_stride);
  const Product product = {&linear, &input, 0, tokens, y, y_stride};
  return multiply(*isa, &product, 1, threads);
}
