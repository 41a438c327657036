// Small layers of random weights for the C++ drivers: a feed-forward layer, and a decoder of two.
#pragma once
#include <deque>

#include "native_weights.h"

struct ToyFormat {
  int32_t format;  // 0: no such expert
  int64_t group;
};

// Random matrices and vectors, at addresses that stay.
class ToyMemory {
 public:
  explicit ToyMemory(uint32_t seed) : rng_(seed) {}
  mote_matrix matrix(ToyFormat f, int64_t rows, int64_t cols, bool biased = false) {
    weights_.push_back(random_weights(rng_, f.format, rows, cols, f.group, biased));
    return weights_.back().w;
  }
  mote_expert expert(ToyFormat f, int64_t hidden, int64_t width) {
    return {matrix(f, width, hidden), matrix(f, width, hidden), matrix(f, hidden, width)};
  }
  const float *vector(int64_t n, float scale, float middle = 0) {
    numbers_.push_back(normals(rng_, n, scale));
    for (float &value : numbers_.back()) value += middle;
    return numbers_.back().data();
  }

 private:
  std::mt19937 rng_;
  std::deque<Weights> weights_;
  std::deque<std::vector<float>> numbers_;
};

// `ffn` points into the object itself.
struct ToyFfn {
  ToyMemory memory{41};
  mote_expert shared{};
  std::vector<mote_expert> experts;
  mote_ffn ffn{};

  ToyFfn(ToyFormat routed, ToyFormat common, int64_t hidden, int64_t width, int32_t num_experts, int32_t top_k,
         int32_t combine) {
    for (int32_t e = 0; e < num_experts; ++e) experts.push_back(memory.expert(routed, hidden, width));
    if (common.format) shared = memory.expert(common, hidden, width);
    ffn.shared = common.format ? &shared : nullptr;
    ffn.experts = num_experts ? experts.data() : nullptr;
    ffn.router = num_experts ? memory.vector(num_experts * hidden, 0.3f) : nullptr;
    ffn.num_experts = num_experts;
    ffn.top_k = top_k;
    ffn.combine = combine;
    ffn.renormalize = top_k > 1;
  }
  ToyFfn(const ToyFfn &) = delete;
};

// A mixture, behind attention with norms over heads and float projections, then a dense layer. `d` points into the
// object itself.
struct ToyDecoder {
  static constexpr int64_t kHidden = 40, kWidth = 72, kHeads = 4, kKvHeads = 2, kDim = 10, kVocabulary = 70;
  static constexpr int32_t kExperts = 3, kTopK = 2;

  ToyMemory memory{43};
  ToyFfn sparse{{MOTE_BASE3, 0}, {MOTE_INT4, 32}, kHidden, kWidth, kExperts, kTopK, MOTE_CONVEX};
  ToyFfn dense{{0, 0}, {MOTE_BF16, 0}, kHidden, kWidth, 0, 0, MOTE_ADD};
  mote_layer layers[2]{};
  mote_decoder d{};

  explicit ToyDecoder(int32_t kv_format) {
    for (mote_layer &layer : layers) {
      const bool first = &layer == layers;
      const ToyFormat f = first ? ToyFormat{MOTE_BF16, 0} : ToyFormat{MOTE_INT8, 8};
      layer.input_norm = memory.vector(kHidden, 0.1f, 1);
      layer.post_norm = memory.vector(kHidden, 0.1f, 1);
      if (first) layer.q_norm = memory.vector(kDim, 0.1f, 1);
      if (first) layer.k_norm = memory.vector(kDim, 0.1f, 1);
      layer.q = memory.matrix(f, kHeads * kDim, kHidden, true);
      layer.k = memory.matrix(f, kKvHeads * kDim, kHidden, true);
      layer.v = memory.matrix(f, kKvHeads * kDim, kHidden);
      layer.o = memory.matrix(f, kHidden, kHeads * kDim);
      layer.ffn = (first ? sparse : dense).ffn;
    }
    d.layers = layers;
    d.num_layers = 2;
    d.hidden = kHidden;
    d.heads = kHeads;
    d.kv_heads = kKvHeads;
    d.head_dim = kDim;
    d.final_norm = memory.vector(kHidden, 0.1f, 1);
    d.head = memory.matrix({MOTE_INT4, 16}, kVocabulary, kHidden);
    d.inv_freq = memory.vector(kDim / 2, 0.1f, 0.5f);
    d.rope_factor = 1;
    d.eps = 1e-6f;
    d.attention_scale = 0.3f;
    d.kv_format = kv_format;
  }
  ToyDecoder(const ToyDecoder &) = delete;
};
