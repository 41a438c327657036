// A forward pass of a Llama-like decoder over the new tokens of several sequences (csrc/mote.h: mote_decoder_f32).
//
//     x = x + o( attention( rotate(q(norm x)), rotate(k(norm x)), v(norm x) ) )        x = x + ffn(norm x)
//
// All sequences' tokens go through the linear maps together; attention reads each sequence's own blocks of keys and
// values. Nothing that a token gets depends on what else is in the batch. Legend: T tokens, H hidden, D head_dim.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "decoder.h"

namespace mote {
namespace {

constexpr int64_t kAttentionTokens = 16;  // of one task
constexpr int64_t kMaxTokens = int64_t{1} << 24;

// One token of the batch: which span it belongs to and where it stands in its sequence.
struct Place {
  int64_t span, position;
};

struct Task {  // of attention: tokens first .. first + count - 1 of a span, for one kv head
  int64_t span, first, count, kv_head;
};

class Pass {
 public:
  Pass(const Isa &isa, const mote_decoder &decoder, const mote_span *spans, int64_t num_spans, int32_t threads,
       int64_t *nanoseconds)
      : isa_(isa), d_(decoder), spans_(spans), num_spans_(num_spans), threads_(threads), nanoseconds_(nanoseconds) {}

  int open();
  int run(float *x, int32_t *expert, float *gate, const int32_t *cancel);
  int logits(const float *x, const int64_t *rows, int64_t num_rows, float *out);
  int64_t tokens() const { return tokens_; }

 private:
  int open_spans();
  int hold();
  void find_rotations();
  int attention(int64_t layer, float *x);
  void place_heads(int64_t layer);
  void attend(int64_t layer);
  int feed_forward(int64_t layer, float *x, int32_t *expert, float *gate);
  void norm(const float *x, const float *weight);
  void add(float *x) const;
  int multiply_all(const std::vector<Product> &products);
  void mark(int part);

  const Isa &isa_;
  const mote_decoder &d_;
  const mote_span *spans_;
  int64_t num_spans_, tokens_ = 0, longest_ = 0;
  int32_t threads_;
  int64_t *nanoseconds_;
  std::chrono::steady_clock::time_point last_;
  OpenDecoder opened_;
  std::vector<Place> places_;
  std::vector<Task> tasks_;
  Buffer<float> normed_, q_, k_, v_, mixed_, out_, cos_, sin_, scores_;
  FfnScratch ffn_;
};

int Pass::open() {
  if (int status = open_decoder(d_, &opened_)) return status;
  if (int status = open_spans()) return status;
  if (int status = hold()) return status;
  find_rotations();
  return MOTE_OK;
}

int Pass::open_spans() {
  for (int64_t s = 0; s < num_spans_; ++s) {
    const mote_span &span = spans_[s];
    const bool sane = span.start >= 0 && span.start < kMaxTokens && span.tokens >= 1 && span.tokens < kMaxTokens;
    if (!sane || !span.blocks || span.num_blocks <= (span.start + span.tokens - 1) / MOTE_KV_TOKENS)
      return fail(MOTE_BAD_ARGUMENT, "span %" PRId64 ": %" PRId64 " tokens after %" PRId64 " do not fit its %" PRId64
                  " blocks of %d tokens", s, span.tokens, span.start, span.num_blocks, MOTE_KV_TOKENS);
    tokens_ += span.tokens;
    if (tokens_ >= kMaxTokens) return fail(MOTE_BAD_ARGUMENT, "a pass over %" PRId64 " tokens or more", tokens_);
    for (int64_t b = 0; b * MOTE_KV_TOKENS < span.start + span.tokens; ++b)
      if (!span.blocks[b]) return fail(MOTE_BAD_ARGUMENT, "span %" PRId64 ": block %" PRId64 " is a null pointer", s, b);
    for (int64_t i = 0; i < span.tokens; ++i) places_.push_back({s, span.start + i});
    for (int64_t first = 0; first < span.tokens; first += kAttentionTokens)
      for (int64_t h = 0; h < d_.kv_heads; ++h)
        tasks_.push_back({s, first, std::min(kAttentionTokens, span.tokens - first), h});
    longest_ = std::max(longest_, span.start + span.tokens);
  }
  // The dearest tasks, those with most positions behind them, first: it evens out the end.
  std::stable_sort(tasks_.begin(), tasks_.end(), [this](const Task &a, const Task &b) {
    return spans_[a.span].start + a.first + a.count > spans_[b.span].start + b.first + b.count;
  });
  return MOTE_OK;
}

int Pass::hold() {
  const int64_t width = d_.heads * d_.head_dim, kv_width = d_.kv_heads * d_.head_dim, half = d_.head_dim / 2;
  for (auto [buffer, count] : {std::pair{&normed_, tokens_ * d_.hidden},
                               {&out_, tokens_ * d_.hidden},
                               {&q_, tokens_ * width},
                               {&mixed_, tokens_ * width},
                               {&k_, tokens_ * kv_width},
                               {&v_, tokens_ * kv_width},
                               {&cos_, tokens_ * half},
                               {&sin_, tokens_ * half},
                               {&scores_, threads_ * isa_.floats->attend_scratch(longest_)}})
    if (int status = buffer->hold(count)) return status;
  return MOTE_OK;
}

void Pass::find_rotations() {
  const int64_t half = d_.head_dim / 2;
  for (int64_t t = 0; t < tokens_; ++t)
    for (int64_t i = 0; i < half; ++i) {
      const float angle = static_cast<float>(places_[static_cast<size_t>(t)].position) * d_.inv_freq[i];
      cos_.get()[t * half + i] = std::cos(angle) * d_.rope_factor;
      sin_.get()[t * half + i] = std::sin(angle) * d_.rope_factor;
    }
}

void Pass::mark(int part) {
  if (!nanoseconds_) return;
  const auto now = std::chrono::steady_clock::now();
  if (part >= 0) nanoseconds_[part] += std::chrono::duration_cast<std::chrono::nanoseconds>(now - last_).count();
  last_ = now;
}

void Pass::norm(const float *x, const float *weight) {
  each(threads_, tokens_, kSerialTokens, [&](int64_t t) {
    isa_.floats->rms_norm(x + t * d_.hidden, weight, d_.eps, d_.hidden, normed_.get() + t * d_.hidden);
  });
}

void Pass::add(float *x) const {
  each(threads_, tokens_, kSerialTokens, [&](int64_t t) {
    isa_.floats->add_scaled(1.0f, out_.get() + t * d_.hidden, d_.hidden, x + t * d_.hidden);
  });
}

int Pass::multiply_all(const std::vector<Product> &products) {
  return multiply(isa_, products.data(), static_cast<int64_t>(products.size()), threads_);
}

// Queries and keys normed (where the model does) and rotated; keys and values into the cache.
void Pass::place_heads(int64_t layer) {
  const mote_layer &from = d_.layers[layer];
  const int64_t dim = d_.head_dim, half = dim / 2, bytes = head_bytes(d_);
  each(threads_, tokens_, kSerialTokens, [&](int64_t t) {
    const Place place = places_[static_cast<size_t>(t)];
    const float *cos = cos_.get() + t * half, *sin = sin_.get() + t * half;
    for (int64_t h = 0; h < d_.heads; ++h) {
      float *q = q_.get() + (t * d_.heads + h) * dim;
      if (from.q_norm) isa_.floats->rms_norm(q, from.q_norm, d_.eps, dim, q);
      isa_.floats->rotate(q, cos, sin, dim);
    }
    char *block = static_cast<char *>(spans_[place.span].blocks[place.position / MOTE_KV_TOKENS]);
    for (int64_t h = 0; h < d_.kv_heads; ++h) {
      float *k = k_.get() + (t * d_.kv_heads + h) * dim;
      if (from.k_norm) isa_.floats->rms_norm(k, from.k_norm, d_.eps, dim, k);
      isa_.floats->rotate(k, cos, sin, dim);
      char *keys = block + (layer * d_.kv_heads + h) * 2 * bytes;
      isa_.floats->store_kv(k, v_.get() + (t * d_.kv_heads + h) * dim, dim, place.position % MOTE_KV_TOKENS, d_.kv_format,
                            keys, keys + bytes);
    }
  });
}

void Pass::attend(int64_t layer) {
  const int64_t dim = d_.head_dim, heads = d_.heads / d_.kv_heads, bytes = head_bytes(d_);
  std::vector<int64_t> first_token(static_cast<size_t>(num_spans_), 0);
  for (int64_t s = 1; s < num_spans_; ++s)
    first_token[static_cast<size_t>(s)] = first_token[static_cast<size_t>(s) - 1] + spans_[s - 1].tokens;
  // Scratch belongs to a lane, and a lane does one task after the other, so no two at a time share it.
  const int64_t lanes = std::min<int64_t>(threads_, static_cast<int64_t>(tasks_.size()));
  std::atomic<int64_t> next{0};
  const bool small = tokens_ * longest_ < 64;
  each(small ? 1 : threads_, lanes, 2, [&](int64_t lane) {
    float *scores = scores_.get() + lane * isa_.floats->attend_scratch(longest_);
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < static_cast<int64_t>(tasks_.size());) {
      const Task &task = tasks_[static_cast<size_t>(i)];
      const mote_span &span = spans_[task.span];
      const int64_t row = first_token[static_cast<size_t>(task.span)] * d_.heads + task.kv_head * heads;
      const int64_t keys = (layer * d_.kv_heads + task.kv_head) * 2 * bytes;
      isa_.floats->attend({q_.get() + row * dim, mixed_.get() + row * dim, d_.heads * dim, heads, task.first, task.count,
                           span.start, dim, span.blocks, keys, keys + bytes, d_.kv_format, d_.attention_scale},
                          scores);
    }
  });
}

int Pass::attention(int64_t layer, float *x) {
  const Layer &l = opened_.layers[static_cast<size_t>(layer)];
  const int64_t width = d_.heads * d_.head_dim, kv_width = d_.kv_heads * d_.head_dim;
  norm(x, d_.layers[layer].input_norm);
  mark(MOTE_NORMS);
  Input h(normed_.get(), tokens_, d_.hidden, d_.hidden);
  if (int status = multiply_all({{&l.q, &h, 0, tokens_, q_.get(), width},
                                 {&l.k, &h, 0, tokens_, k_.get(), kv_width},
                                 {&l.v, &h, 0, tokens_, v_.get(), kv_width}}))
    return status;
  mark(MOTE_PROJECTIONS);
  place_heads(layer);
  attend(layer);
  mark(MOTE_ATTENTION);
  Input mixed(mixed_.get(), tokens_, width, width);
  if (int status = multiply_all({{&l.o, &mixed, 0, tokens_, out_.get(), d_.hidden}})) return status;
  add(x);
  mark(MOTE_PROJECTIONS);
  return MOTE_OK;
}

int Pass::feed_forward(int64_t layer, float *x, int32_t *expert, float *gate) {
  const Ffn &ffn = opened_.layers[static_cast<size_t>(layer)].ffn;
  norm(x, d_.layers[layer].post_norm);
  mark(MOTE_NORMS);
  if (int status = route(isa_, ffn, normed_.get(), tokens_, d_.hidden, &ffn_, threads_)) return status;
  mark(MOTE_ROUTER);
  if (int status = mix(isa_, ffn, normed_.get(), tokens_, d_.hidden, out_.get(), d_.hidden, &ffn_, threads_)) return status;
  add(x);
  mark(MOTE_EXPERTS);
  const int64_t own = ffn.experts.empty() ? 0 : ffn.settings->top_k;
  for (int64_t t = 0; t < tokens_; ++t)
    for (int64_t k = 0; k < opened_.top_k; ++k) {
      const int64_t to = (layer * tokens_ + t) * opened_.top_k + k;
      if (expert) expert[to] = k < own ? ffn_.expert_Tk.get()[t * own + k] : -1;
      if (gate) gate[to] = k < own ? ffn_.gate_Tk.get()[t * own + k] : 0.0f;
    }
  return MOTE_OK;
}

int Pass::run(float *x, int32_t *expert, float *gate, const int32_t *cancel) {
  mark(-1);
  for (int64_t layer = 0; layer < d_.num_layers; ++layer) {
    if (cancel && __atomic_load_n(cancel, __ATOMIC_RELAXED) != 0)
      return fail(MOTE_CANCELLED, "cancelled before layer %" PRId64, layer);
    if (int status = attention(layer, x)) return status;
    if (int status = feed_forward(layer, x, expert, gate)) return status;
  }
  return MOTE_OK;
}

int Pass::logits(const float *x, const int64_t *rows, int64_t num_rows, float *out) {
  if (num_rows == 0) return MOTE_OK;
  Buffer<float> last;
  if (int status = last.hold(num_rows * d_.hidden)) return status;
  for (int64_t i = 0; i < num_rows; ++i)
    isa_.floats->rms_norm(x + rows[i] * d_.hidden, d_.final_norm, d_.eps, d_.hidden, last.get() + i * d_.hidden);
  mark(MOTE_NORMS);
  Input input(last.get(), num_rows, d_.hidden, d_.hidden);
  if (int status = multiply_all({{&opened_.head, &input, 0, num_rows, out, d_.head.rows}})) return status;
  mark(MOTE_HEAD);
  return MOTE_OK;
}
}  // namespace
}  // namespace mote

extern "C" {

int64_t mote_kv_block_bytes(const mote_decoder *decoder) {
  using namespace mote;
  if (!decoder) {
    fail(MOTE_BAD_ARGUMENT, "the decoder is a null pointer");
    return -1;
  }
  if (check_decoder(*decoder)) return -1;
  return decoder->num_layers * decoder->kv_heads * 2 * head_bytes(*decoder);
}

int mote_decoder_f32(const mote_decoder *decoder, float *x, const mote_span *spans, int64_t num_spans,
                     const int64_t *rows, int64_t num_rows, float *logits, int32_t *expert, float *gate,
                     const int32_t *cancel, int64_t *nanoseconds, int32_t threads) {
  using namespace mote;
  if (!decoder || !x || !spans || num_spans < 1 || num_spans > kMaxTokens || num_rows < 0 || num_rows > kMaxTokens ||
      threads < 1 ||
      (num_rows > 0 && (!rows || !logits)))
    return fail(MOTE_BAD_ARGUMENT, "decoder: a null pointer, %" PRId64 " spans, %" PRId64 " rows or %d threads", num_spans,
                num_rows, threads);
  const Isa *isa = chosen_isa();
  if (!isa) return MOTE_UNSUPPORTED;
  try {
    Pass pass(*isa, *decoder, spans, num_spans, std::min(threads, 256), nanoseconds);
    if (int status = pass.open()) return status;
    for (int64_t i = 0; i < num_rows; ++i)
      if (rows[i] < 0 || rows[i] >= pass.tokens())
        return fail(MOTE_BAD_ARGUMENT, "logits of token %" PRId64 " of %" PRId64 " were asked for", rows[i], pass.tokens());
    if (int status = pass.run(x, expert, gate, cancel)) return status;
    return pass.logits(x, rows, num_rows, logits);
  } catch (const std::bad_alloc &) {
    return fail(MOTE_NO_MEMORY, "decoder: no memory for a pass");
  }
}
}
