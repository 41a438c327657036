// What the rounds of native_fuzz.cpp are made of: buffers exactly as large as claimed; legal matrices, layers and
// decoders, and damage to them.
#pragma once
#include <algorithm>
#include <map>
#include <random>
#include <vector>

#include "native_driver.h"

constexpr int64_t kMost = 1 << 18;  // bytes of a buffer

inline std::mt19937_64 rng;

inline int64_t below(int64_t n) { return static_cast<int64_t>(rng() % static_cast<uint64_t>(n)); }
inline bool once_in(int64_t n) { return below(n) == 0; }

// Numbers at which sizes break.
inline int64_t odd_number() {
  static const int64_t edges[] = {INT64_MIN, INT64_MIN + 1, -64, -1, 0, 1, 63, 65, 1 << 16, int64_t{1} << 22,
                                  int64_t{1} << 31, int64_t{1} << 32, int64_t{1} << 61, INT64_MAX - 63, INT64_MAX};
  return edges[below(sizeof edges / sizeof *edges)];
}
inline int64_t damaged(int64_t value) {
  switch (below(4)) {
    case 0: return static_cast<int64_t>(static_cast<uint64_t>(value) + static_cast<uint64_t>(below(3)) - 1);
    case 1: return value ^ (int64_t{1} << below(63));
    case 2: return static_cast<int64_t>(static_cast<uint64_t>(value) * static_cast<uint64_t>(below(5)));
    default: return odd_number();
  }
}

// The library cannot know that a caller's buffers are shorter than legal sizes say: keep what is short, or more than
// any memory holds and therefore to be refused.
inline int64_t short_or_absurd(int64_t value, int64_t most) {
  return value > most && value < int64_t{1} << 60 ? value % most : value;
}

// Heap blocks of exactly so many random bytes; a wild pointer where that cannot be, and rarely a null pointer.
class Buffers {
 public:
  explicit Buffers(int64_t null_once_in = 64) : null_once_in_(null_once_in) {}
  template <class T>
  T *get(int64_t count) {
    if (count < 0 || count > kMost / static_cast<int64_t>(sizeof(T))) {
      wild_ = true;
      return reinterpret_cast<T *>(64);
    }
    if (once_in(null_once_in_)) return nullptr;
    blocks_.push_back(block<char>(count * static_cast<int64_t>(sizeof(T))));
    char *bytes = blocks_.back().get();
    for (size_t i = 0; i < static_cast<size_t>(count) * sizeof(T); ++i) bytes[i] = static_cast<char>(rng());
    return reinterpret_cast<T *>(bytes);
  }
  bool wild() const { return wild_; }

 private:
  std::vector<std::unique_ptr<char[]>> blocks_;
  int64_t null_once_in_;
  bool wild_ = false;
};

// A number of things of which `most` are at hand, as a field of 32 bits; one above may be claimed if it is absurd.
inline int32_t few_or_absurd(int64_t value, int64_t most) {
  const auto claim = static_cast<int32_t>(value);
  return claim <= most ? claim : once_in(2) ? INT32_MAX : static_cast<int32_t>(claim % (most + 1));
}

// Elements of `n` rows of `width` at a stride; -1 where that is no number of bytes that could be had.
inline int64_t extent(int64_t n, int64_t width, int64_t stride) {
  if (n <= 0) return 0;
  if (n == 1) return width;
  if (width < 0 || width > kMost || n > kMost || stride < 0 || stride > kMost) return -1;
  return (n - 1) * stride + width;
}

struct Tally {
  int64_t accepted = 0, refused = 0;
};
inline std::map<std::string, Tally> tallies;  // by the function called

inline void count(int status, const Buffers &buffers, const char *what) {
  if (status == MOTE_OK && buffers.wild()) stop(std::string(what) + " accepted sizes beyond its buffers");
  ++(status == MOTE_OK ? tallies[what].accepted : tallies[what].refused);
}

inline bool is_dense(const mote_matrix &w) { return w.format == MOTE_BF16 || w.format == MOTE_F32; }

inline mote_matrix legal_matrix(int64_t rows, int64_t cols) {
  mote_matrix w{};
  w.format = static_cast<int32_t>(1 + below(MOTE_UINT8));
  w.rows = rows;
  w.cols = cols;
  const bool dense = is_dense(w), integers = is_integers(w.format);
  w.group = dense || (!integers && once_in(2)) ? 0 : (w.format == MOTE_INT3 ? 32 : 16) * (1 + below(5));
  w.granularity = w.group ? MOTE_GROUP : static_cast<int32_t>(below(2));
  w.bytes = mote_packed_bytes(w.format, rows, cols, w.group);
  const int64_t groups = w.group ? (cols + w.group - 1) / w.group : 1;
  w.scales = dense ? 0 : integers ? (rows + 63) / 64 * 64 * groups : w.granularity == MOTE_TENSOR ? 1 : rows * groups;
  if (integers && w.format != MOTE_INT8 && once_in(2)) w.zeros = w.scales;
  return w;
}

inline void damage(mote_matrix *w) {
  switch (below(8)) {
    case 0: w->rows = damaged(w->rows); break;
    case 1: w->cols = damaged(w->cols); break;
    case 2: w->group = damaged(w->group); break;
    case 3: w->bytes = damaged(w->bytes); break;
    case 4: w->scales = damaged(w->scales); break;
    case 5: w->zeros = damaged(w->zeros); break;
    case 6: w->format = static_cast<int32_t>(damaged(w->format)); break;
    default: w->granularity = static_cast<int32_t>(damaged(w->granularity));
  }
}

inline void fill(Buffers *b, mote_matrix *w) {
  w->data = b->get<uint8_t>(w->bytes);
  w->scale = is_integers(w->format) ? static_cast<void *>(b->get<uint16_t>(w->scales)) : b->get<float>(w->scales);
  if (is_dense(*w) && w->scales == 0) w->scale = nullptr;
  w->zero = w->zeros == 0 ? nullptr : b->get<uint16_t>(w->zeros);
}

// A feed-forward layer and its experts; `ffn` points into it.
struct Layer {
  mote_expert shared;
  std::vector<mote_expert> experts;
  mote_ffn ffn;
};

constexpr int64_t kExperts = 6;

inline mote_expert legal_expert(int64_t hidden, int64_t width) {
  return {legal_matrix(width, hidden), legal_matrix(width, hidden), legal_matrix(hidden, width)};
}

inline void make_legal(Layer *layer, int64_t hidden, int64_t width) {
  mote_ffn &ffn = layer->ffn = {};
  ffn.num_experts = static_cast<int32_t>(below(kExperts));
  ffn.top_k = ffn.num_experts ? static_cast<int32_t>(1 + below(ffn.num_experts)) : 0;
  ffn.renormalize = static_cast<int32_t>(below(2));
  layer->shared = legal_expert(hidden, width);
  for (int64_t e = 0; e < kExperts; ++e) layer->experts.push_back(legal_expert(hidden, width));
  if (ffn.num_experts == 0 || once_in(2)) ffn.shared = &layer->shared;
  if (ffn.shared) ffn.combine = static_cast<int32_t>(below(2));
  if (ffn.num_experts > 0) ffn.experts = layer->experts.data();
}

inline void damage(Layer *layer) {
  mote_ffn &ffn = layer->ffn;
  mote_expert &expert = once_in(2) ? layer->shared : layer->experts[static_cast<size_t>(below(kExperts))];
  mote_matrix *matrices[] = {&expert.gate, &expert.up, &expert.down};
  switch (below(8)) {
    case 0: ffn.num_experts = static_cast<int32_t>(damaged(ffn.num_experts)); break;
    case 1: ffn.top_k = static_cast<int32_t>(damaged(ffn.top_k)); break;
    case 2: ffn.combine = static_cast<int32_t>(damaged(ffn.combine)); break;
    case 3: ffn.shared = nullptr; break;
    case 4: ffn.experts = once_in(2) ? nullptr : layer->experts.data(); break;
    default: damage(matrices[below(3)]);
  }
  ffn.num_experts = few_or_absurd(ffn.num_experts, kExperts);
}

// Buffers of all that the layer claims to have; `hidden` is what its router is read with.
inline void fill(Buffers *b, Layer *layer, int64_t hidden) {
  mote_ffn &ffn = layer->ffn;
  std::vector<mote_expert *> experts;
  if (ffn.shared) experts.push_back(&layer->shared);
  for (mote_expert &expert : layer->experts)
    if (static_cast<int32_t>(&expert - layer->experts.data()) < ffn.num_experts) experts.push_back(&expert);
  for (mote_expert *expert : experts)
    for (mote_matrix *w : {&expert->gate, &expert->up, &expert->down}) fill(b, w);
  ffn.router = b->get<float>(extent(ffn.num_experts, hidden, hidden));
}

constexpr int64_t kLayers = 2, kSpans = 2, kRows = 8;
constexpr int64_t kStart = 150, kTokens = 40, kBlocks = 6;  // blocks for all these tokens

// A decoder of up to two layers and a call of it.
struct Forward {
  mote_decoder d;
  mote_layer layers[kLayers];
  Layer ffns[kLayers];
  mote_span spans[kSpans];
  int64_t num_spans, num_rows, rows[kRows];
  int32_t threads;
};

inline void make_legal(Forward *f) {
  mote_decoder &d = f->d = {};
  d.num_layers = 1 + below(kLayers);
  d.hidden = 1 + below(50);
  d.kv_heads = 1 + below(2);
  d.heads = d.kv_heads * (1 + below(3));
  d.head_dim = 2 * (1 + below(9));
  d.kv_format = once_in(2) ? MOTE_BF16 : MOTE_F32;
  d.eps = 1e-5f;
  d.rope_factor = d.attention_scale = 1;
  d.head = legal_matrix(1 + below(80), d.hidden);
  for (int64_t l = 0; l < kLayers; ++l) {
    mote_layer &layer = f->layers[l] = {};
    const int64_t width = d.heads * d.head_dim, kv_width = d.kv_heads * d.head_dim;
    layer.q = legal_matrix(width, d.hidden);
    layer.k = legal_matrix(kv_width, d.hidden);
    layer.v = legal_matrix(kv_width, d.hidden);
    layer.o = legal_matrix(d.hidden, width);
    make_legal(&f->ffns[l], d.hidden, 1 + below(60));
  }
  int64_t tokens = 0;
  f->num_spans = 1 + below(kSpans);
  for (int64_t s = 0; s < kSpans; ++s) {
    f->spans[s] = {below(70), 1 + below(20), nullptr, 0};
    f->spans[s].num_blocks = (f->spans[s].start + f->spans[s].tokens + MOTE_KV_TOKENS - 1) / MOTE_KV_TOKENS;
    tokens += s < f->num_spans ? f->spans[s].tokens : 0;
  }
  f->num_rows = below(kRows);
  for (int64_t &row : f->rows) row = below(tokens);
  f->threads = static_cast<int32_t>(1 + below(3));
}

inline void damage(Forward *f) {
  mote_decoder &d = f->d;
  mote_layer &layer = f->layers[below(kLayers)];
  mote_span &span = f->spans[below(kSpans)];
  mote_matrix *matrices[] = {&layer.q, &layer.k, &layer.v, &layer.o, &d.head};
  switch (below(14)) {
    case 0: d.num_layers = damaged(d.num_layers); break;
    case 1: d.hidden = damaged(d.hidden); break;
    case 2: d.heads = damaged(d.heads); break;
    case 3: d.kv_heads = damaged(d.kv_heads); break;
    case 4: d.head_dim = damaged(d.head_dim); break;
    case 5: d.kv_format = static_cast<int32_t>(damaged(d.kv_format)); break;
    case 6: span.start = damaged(span.start); break;
    case 7: span.tokens = damaged(span.tokens); break;
    case 8: span.num_blocks = damaged(span.num_blocks); break;
    case 9: f->num_rows = damaged(f->num_rows); break;
    case 10: f->rows[below(kRows)] = odd_number(); break;
    case 11: f->num_spans = damaged(f->num_spans); break;
    case 12: damage(matrices[below(5)]); break;
    default: damage(&f->ffns[below(kLayers)]);
  }
  d.num_layers = short_or_absurd(d.num_layers, kLayers);
  f->num_spans = short_or_absurd(f->num_spans, kSpans);
  f->num_rows = short_or_absurd(f->num_rows, kRows);
  span.start = short_or_absurd(span.start, kStart);
  span.tokens = short_or_absurd(span.tokens, kTokens);
}
