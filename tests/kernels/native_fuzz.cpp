// Calls the C interface with headers, sizes and bytes damaged at random, under ASan and UBSan (`make fuzz`).
//
// Each round draws a legal matrix, layer and decoder, damages some of their fields, and then allocates every buffer
// exactly as large as the damaged fields claim; a claim too large to allocate becomes a wild pointer, and so does
// whatever the library may not touch before it has refused. So each call must be refused, or stay within what it was
// given. Bytes of weights, scales and activations are random: they may give wrong numbers, but never a wild access.
//   native_fuzz [seconds] [seed]
#include <algorithm>
#include <chrono>
#include <string>

#include "native_fuzz.h"

namespace {

struct Call {
  mote_matrix w;
  int64_t tokens, x_stride, y_stride;
  int32_t threads;
};

Call legal() {
  Call c{};
  c.w = legal_matrix(1 + below(140), 1 + below(200));
  c.tokens = below(8);
  c.x_stride = c.w.cols + below(3);
  c.y_stride = c.w.rows + below(3);
  c.threads = static_cast<int32_t>(1 + below(3));
  return c;
}

void damage(Call *c) {
  for (int64_t n = below(3); n > 0; --n) switch (below(9)) {
      case 0: c->tokens = damaged(c->tokens); break;
      case 1: (once_in(2) ? c->x_stride : c->y_stride) = damaged(c->x_stride); break;
      default: damage(&c->w);
    }
  c->tokens = short_or_absurd(c->tokens, 64);
  c->x_stride = short_or_absurd(c->x_stride, kMost / 256);
  c->y_stride = short_or_absurd(c->y_stride, kMost / 256);
}

void products(Call c) {
  Buffers b;
  fill(&b, &c.w);
  if (once_in(3)) c.w.bias = b.get<float>(c.w.rows);
  const auto *x = b.get<float>(extent(c.tokens, c.w.cols, c.x_stride));
  auto *y = b.get<float>(extent(c.tokens, c.w.rows, c.y_stride));
  count(mote_linear_f32(&c.w, x, c.tokens, c.x_stride, y, c.y_stride, c.threads), b, "linear");
  // Integers need no scales: their claims must not be trusted, nor their pointers followed.
  c.w.scale = c.w.zero = reinterpret_cast<const void *>(64);
  const auto *x_q = b.get<int8_t>(extent(c.tokens, c.w.cols, c.x_stride));
  auto *y_q = b.get<int32_t>(extent(c.tokens, c.w.rows, c.y_stride));
  if (!b.wild()) count(mote_matmul_i32(&c.w, x_q, c.tokens, c.x_stride, y_q, c.y_stride, c.threads), b, "matmul");
}

void rows(Call c) {
  Buffers b;
  fill(&b, &c.w);
  auto *index = b.get<int64_t>(c.tokens < 0 ? 0 : c.tokens);
  if (index && c.tokens <= kMost / 8)
    for (int64_t i = 0; i < c.tokens; ++i) index[i] = once_in(40) ? odd_number() : below(c.w.rows > 0 ? c.w.rows : 1);
  auto *y = b.get<float>(extent(c.tokens, c.w.cols, c.x_stride));
  count(mote_rows_f32(&c.w, index, c.tokens, y, c.x_stride), b, "rows");
}

void packing(Call c) {
  Buffers b;
  c.w.data = b.get<uint8_t>(c.w.bytes);
  auto *q = b.get<int8_t>(extent(c.w.rows, c.w.cols, c.x_stride));
  count(mote_unpack(&c.w, q, c.x_stride), b, "unpack");
  if (!b.wild() && q)
    for (int64_t i = 0, n = extent(c.w.rows, c.w.cols, c.x_stride); i < n; ++i)
      q[i] = static_cast<int8_t>(once_in(5000) ? static_cast<int64_t>(rng()) : below(3) - 1);
  auto *out = b.get<uint8_t>(c.w.bytes);
  count(mote_pack(c.w.format, c.w.rows, c.w.cols, c.w.group, q, c.x_stride, out, c.w.bytes), b, "pack");
}

void activations(const Call &c) {
  Buffers b;
  const auto *x = b.get<float>(extent(c.tokens, c.w.cols, c.x_stride));
  auto *x_q = b.get<int8_t>(extent(c.tokens, c.w.cols, c.y_stride));
  auto *s = b.get<float>(c.tokens < 0 ? 0 : c.tokens);
  count(mote_quantize_activation(x, c.tokens, c.w.cols, c.x_stride, x_q, c.y_stride, s), b, "quantize_activation");
}

void layers() {
  Buffers b(500);
  Layer layer;
  const int64_t size = 1 + below(90);
  make_legal(&layer, size, 1 + below(90));
  Call c = legal();
  c.x_stride = c.y_stride = size + below(3);
  damage(&c);
  for (int64_t n = below(3); n > 0; --n) damage(&layer);
  const mote_ffn &ffn = layer.ffn;
  const int64_t hidden = (ffn.shared ? layer.shared : layer.experts[0]).gate.cols;
  fill(&b, &layer, hidden);
  const int64_t routes = ffn.num_experts > 0 ? extent(c.tokens, ffn.top_k, ffn.top_k) : 0;
  const auto *h = b.get<float>(extent(c.tokens, hidden, c.x_stride));
  auto *y = b.get<float>(extent(c.tokens, hidden, c.y_stride));
  auto *expert = b.get<int32_t>(routes);
  auto *gate = b.get<float>(routes);
  count(mote_ffn_f32(&ffn, h, c.tokens, c.x_stride, y, c.y_stride, expert, gate, c.threads), b, "ffn");
}

// The first `claimed` things, in a heap block of their own.
template <class T>
std::vector<T> first(const T *things, int64_t claimed, int64_t most) {
  return std::vector<T>(things, things + std::clamp<int64_t>(claimed, 0, most));
}

void decoders() {
  Buffers b(1500);
  Forward f;
  make_legal(&f);
  for (int64_t n = below(3); n > 0; --n) damage(&f);
  mote_decoder &d = f.d;
  auto layers = first(f.layers, d.num_layers, kLayers);
  int64_t top_k = 1;
  for (size_t l = 0; l < layers.size(); ++l) {
    mote_layer &layer = layers[l];
    for (mote_matrix *w : {&layer.q, &layer.k, &layer.v, &layer.o}) fill(&b, w);
    layer.input_norm = b.get<float>(d.hidden);
    layer.post_norm = b.get<float>(d.hidden);
    if (once_in(2)) layer.q_norm = b.get<float>(d.head_dim);
    if (once_in(2)) layer.k_norm = b.get<float>(d.head_dim);
    fill(&b, &f.ffns[l], d.hidden);
    layer.ffn = f.ffns[l].ffn;
    if (layer.ffn.num_experts > 0) top_k = std::max<int64_t>(top_k, layer.ffn.top_k);
  }
  fill(&b, &d.head);
  d.layers = layers.data();
  d.final_norm = b.get<float>(d.hidden);
  d.inv_freq = b.get<float>(d.head_dim / 2);
  auto spans = first(f.spans, f.num_spans, kSpans);
  const auto rows = first(f.rows, f.num_rows, kRows);
  const int64_t block_bytes = std::max<int64_t>(mote_kv_block_bytes(&d), 0);
  std::vector<std::vector<void *>> blocks;
  int64_t tokens = 0;
  for (mote_span &span : spans) {
    blocks.emplace_back(static_cast<size_t>(std::clamp<int64_t>(span.num_blocks, 0, kBlocks)));
    for (void *&address : blocks.back()) address = b.get<char>(block_bytes);
    span.blocks = blocks.back().data();
    if (span.tokens > 0 && span.tokens <= kTokens) tokens += span.tokens;
  }
  auto *x = b.get<float>(extent(tokens, d.hidden, d.hidden));
  auto *logits = b.get<float>(extent(f.num_rows, d.head.rows, d.head.rows));
  const int64_t routes = top_k > kExperts ? -1 : static_cast<int64_t>(layers.size()) * tokens * top_k;
  auto *expert = b.get<int32_t>(routes);
  auto *gate = b.get<float>(routes);
  const int status = mote_decoder_f32(&d, x, spans.data(), f.num_spans, rows.data(), f.num_rows, logits, expert, gate,
                                      nullptr, nullptr, f.threads);
  count(status, b, "decoder");
}
}  // namespace

int main(int argc, char **argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 60;
  const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  std::vector<std::string> isas;
  const std::string names = mote_isas();
  for (size_t from = 0; from < names.size();) {
    const size_t to = std::min(names.find(' ', from), names.size());
    isas.push_back(names.substr(from, to - from));
    from = to + 1;
  }
  int64_t round = 0;
  for (; std::chrono::steady_clock::now() < end; ++round) {
    rng.seed(seed * 1000003 + static_cast<uint64_t>(round));  // a round can be repeated alone
    mote_select_isa(isas[static_cast<size_t>(round) % isas.size()].c_str());
    Call c = legal();
    damage(&c);
    products(c);
    rows(c);
    packing(c);
    activations(c);
    layers();
    decoders();
  }
  std::printf("%lld rounds from seed %llu; accepted, refused:", static_cast<long long>(round),
              static_cast<unsigned long long>(seed));
  for (const auto &[what, tally] : tallies)
    std::printf(" %s %lld, %lld;", what.c_str(), static_cast<long long>(tally.accepted),
                static_cast<long long>(tally.refused));
  std::printf("\n");
  for (const auto &[what, tally] : tallies)
    if (std::min(tally.accepted, tally.refused) < round / 20) stop(what + ": calls of one kind alone mean nothing");
}
