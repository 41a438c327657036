// Whole layers through mote.h: feed-forward layers and a decoder of two layers, whose bits must not depend on the ISA,
// the threads, the other tokens or the cut into calls.
#include <algorithm>
#include <cmath>
#include <sstream>

#include "native_toys.h"

namespace {

int64_t passed = 0;
std::mt19937 rng(41);

// work(isa, threads) for every ISA on one thread and on three.
template <class Work>
void everywhere(const Work &work) {
  std::istringstream names(mote_isas());
  for (std::string isa; names >> isa;) {
    if (mote_select_isa(isa.c_str())) stop("select " + isa);
    for (int32_t threads : {1, 3}) work(isa, threads);
  }
}

bool same(const float *a, const float *b, int64_t n) {
  return std::memcmp(a, b, static_cast<size_t>(n) * sizeof *a) == 0;
}

// ---- one feed-forward layer ----

struct Mixed {
  std::unique_ptr<float[]> y, gate;
  std::unique_ptr<int32_t[]> expert;
};

constexpr float kPoison = -77;

Mixed mix(const mote_ffn &ffn, const float *h, int64_t tokens, int64_t stride, int64_t hidden, int32_t threads) {
  const int64_t size = (tokens - 1) * stride + hidden, routes = tokens * (ffn.num_experts ? ffn.top_k : 0);
  Mixed m{block<float>(size), block<float>(routes), block<int32_t>(routes)};
  std::fill_n(m.y.get(), size, kPoison);
  if (mote_ffn_f32(&ffn, h, tokens, stride, m.y.get(), stride, m.expert.get(), m.gate.get(), threads)) stop("ffn");
  return m;
}

void check_routes(const Mixed &m, const mote_ffn &ffn, int64_t tokens) {
  for (int64_t t = 0; t < tokens && ffn.num_experts; ++t)
    for (int32_t k = 0; k < ffn.top_k; ++k) {
      const int32_t *expert = m.expert.get() + t * ffn.top_k;
      const float gate = m.gate[t * ffn.top_k + k];
      const bool fresh = std::find(expert, expert + k, expert[k]) == expert + k;
      const bool one_of_them = expert[k] >= 0 && expert[k] < ffn.num_experts;
      if (!fresh || !one_of_them || !(gate > 0 && gate <= 1)) stop("routes of a layer");
    }
}

void run_ffn(const ToyFfn &layer, int64_t hidden) {
  const mote_ffn &ffn = layer.ffn;
  mote_select_isa("scalar");
  for (int64_t tokens : {1, 2, 21}) {
    const int64_t stride = hidden + 3, size = (tokens - 1) * stride + hidden;
    auto h = block<float>(size);
    for (int64_t i = 0; i < size; ++i) h[i] = normal(rng, 2.0f);
    const Mixed plain = mix(ffn, h.get(), tokens, stride, hidden, 1);
    check_routes(plain, ffn, tokens);
    for (int64_t i = 0; i < size; ++i)
      if (i % stride < hidden ? !std::isfinite(plain.y[i]) : plain.y[i] != kPoison) stop("outputs of a layer");
    const int64_t routes = tokens * (ffn.num_experts ? ffn.top_k : 0);
    everywhere([&](const std::string &isa, int32_t threads) {
      const Mixed m = mix(ffn, h.get(), tokens, stride, hidden, threads);
      if (!same(m.y.get(), plain.y.get(), size) || !same(m.gate.get(), plain.gate.get(), routes) ||
          !std::equal(m.expert.get(), m.expert.get() + routes, plain.expert.get()))
        stop("a layer differs on " + isa);
      const Mixed last = mix(ffn, h.get() + (tokens - 1) * stride, 1, stride, hidden, threads);
      if (!same(last.y.get(), plain.y.get() + (tokens - 1) * stride, hidden)) stop("a token alone differs on " + isa);
      ++passed;
    });
  }
}

void run_ffns() {
  run_ffn({{MOTE_2BIT, 0}, {MOTE_F32, 0}, 37, 53, 4, 1, MOTE_ADD}, 37);
  run_ffn({{MOTE_BASE3, 0}, {MOTE_INT4, 32}, 130, 260, 3, 2, MOTE_CONVEX}, 130);
  run_ffn({{MOTE_2BIT, 32}, {MOTE_BF16, 0}, 65, 100, 2, 2, MOTE_ADD}, 65);
  run_ffn({{MOTE_BASE3, 60}, {MOTE_INT8, 64}, 70, 65, 5, 2, MOTE_CONVEX}, 70);
  run_ffn({{MOTE_INT4, 8}, {0, 0}, 20, 33, 6, 3, MOTE_ADD}, 20);
  run_ffn({{MOTE_INT3, 32}, {0, 0}, 70, 65, 4, 2, MOTE_ADD}, 70);
  run_ffn({{MOTE_UINT8, 64}, {MOTE_INT6, 16}, 40, 72, 3, 2, MOTE_CONVEX}, 40);
  run_ffn({{MOTE_BF16, 0}, {MOTE_BASE3, 48}, 1, 1, 1, 1, MOTE_ADD}, 1);
  run_ffn({{0, 0}, {MOTE_F32, 0}, 41, 64, 0, 0, MOTE_ADD}, 41);
}

// ---- the decoder ----

using Toy = ToyDecoder;

// One text: its inputs, its cache, full of NaN before it is written, and the logits of every token.
struct Text {
  std::vector<float> x;
  std::vector<std::unique_ptr<char[]>> blocks;
  std::vector<void *> addresses;
  std::vector<float> logits;
  int64_t done = 0;

  Text(const std::vector<float> &inputs, int64_t block_bytes) : x(inputs) {
    const int64_t tokens = static_cast<int64_t>(x.size()) / Toy::kHidden;
    for (int64_t b = 0; b * MOTE_KV_TOKENS < tokens; ++b) {
      blocks.push_back(block<char>(block_bytes));
      std::memset(blocks.back().get(), 0xff, static_cast<size_t>(block_bytes));
      addresses.push_back(blocks.back().get());
    }
  }
  mote_span span(int64_t tokens) const {
    return {done, tokens, addresses.data(), (done + tokens + MOTE_KV_TOKENS - 1) / MOTE_KV_TOKENS};
  }
};

// The next counts[i] tokens of every text in one call.
void decode(const Toy &decoder, std::vector<Text *> texts, const std::vector<int64_t> &counts, int32_t threads) {
  std::vector<mote_span> spans;
  std::vector<float> x;
  for (size_t i = 0; i < texts.size(); ++i) {
    spans.push_back(texts[i]->span(counts[i]));
    const auto from = texts[i]->x.begin() + texts[i]->done * Toy::kHidden;
    x.insert(x.end(), from, from + counts[i] * Toy::kHidden);
  }
  const int64_t tokens = static_cast<int64_t>(x.size()) / Toy::kHidden;
  x.shrink_to_fit();
  auto rows = block<int64_t>(tokens), nanoseconds = block<int64_t>(MOTE_PARTS);
  for (int64_t t = 0; t < tokens; ++t) rows[t] = t;
  std::fill_n(nanoseconds.get(), MOTE_PARTS, 0);
  auto logits = block<float>(tokens * Toy::kVocabulary), gate = block<float>(2 * tokens * Toy::kTopK);
  auto expert = block<int32_t>(2 * tokens * Toy::kTopK);
  if (mote_decoder_f32(&decoder.d, x.data(), spans.data(), static_cast<int64_t>(spans.size()), rows.get(), tokens,
                       logits.get(), expert.get(), gate.get(), nullptr, nanoseconds.get(), threads))
    stop("decoder");
  for (int64_t i = 0; i < 2 * tokens * Toy::kTopK; ++i) {
    const bool dense = i >= tokens * Toy::kTopK;
    if (dense ? expert[i] != -1 : expert[i] < 0 || expert[i] >= Toy::kExperts) stop("routes of a decoder");
  }
  const float *from = logits.get();
  for (size_t i = 0; i < texts.size(); ++i, from += counts[i - 1] * Toy::kVocabulary) {
    texts[i]->logits.insert(texts[i]->logits.end(), from, from + counts[i] * Toy::kVocabulary);
    texts[i]->done += counts[i];
  }
}

void run_decoder(int32_t kv_format) {
  const Toy decoder(kv_format);
  const int64_t bytes = mote_kv_block_bytes(&decoder.d);
  const int64_t width = kv_format == MOTE_BF16 ? 2 : 4;
  if (bytes != 2 * Toy::kKvHeads * 2 * Toy::kDim * MOTE_KV_TOKENS * width) stop("kv_block_bytes");
  const std::vector<float> first = normals(rng, 37 * Toy::kHidden, 1.0f);
  const std::vector<float> second = normals(rng, 66 * Toy::kHidden, 1.0f);
  mote_select_isa("scalar");
  Text alone[] = {{first, bytes}, {second, bytes}};
  decode(decoder, {&alone[0]}, {37}, 1);
  decode(decoder, {&alone[1]}, {66}, 1);
  for (const Text &text : alone)
    for (float value : text.logits)
      if (!std::isfinite(value)) stop("logits of a decoder");
  everywhere([&](const std::string &isa, int32_t threads) {
    Text a(first, bytes), b(second, bytes);
    decode(decoder, {&a, &b}, {30, 1}, threads);
    decode(decoder, {&b, &a}, {62, 5}, threads);  // both across the edge of a block
    decode(decoder, {&a, &b}, {1, 1}, threads);
    decode(decoder, {&a, &b}, {1, 2}, threads);
    if (!same(a.logits.data(), alone[0].logits.data(), 37 * Toy::kVocabulary) ||
        !same(b.logits.data(), alone[1].logits.data(), 66 * Toy::kVocabulary))
      stop("a decoder differs on " + isa);
    ++passed;
  });
}
}  // namespace

int64_t compare_layers() {
  run_ffns();
  run_decoder(MOTE_BF16);
  run_decoder(MOTE_F32);
  return passed;
}
