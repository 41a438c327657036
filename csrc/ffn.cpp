// The mixture of one layer: every token through the shared expert and through the top_k routed experts of its route.
//
// Routed rows are sorted by expert (stable), so that an expert multiplies one run of rows; gate and up of all experts are
// one parallel region, down another. What a token gets does not depend on the other tokens: every product's row depends
// on its own input only, and the sum goes by rank. Legend: T tokens, R = T * top_k rows, H hidden, F width, E experts.
#include "ffn.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace mote {
namespace {

int check_expert(const Expert &expert, int64_t hidden, int64_t width, int64_t layer, const char *which) {
  const bool fits = expert.gate.w->rows == width && expert.gate.w->cols == hidden && expert.up.w->rows == width &&
                    expert.up.w->cols == hidden && expert.down.w->rows == hidden && expert.down.w->cols == width;
  return fits ? MOTE_OK
              : fail(MOTE_BAD_ARGUMENT, "layer %" PRId64 ": matrices of a %s expert are not [F, H], [F, H], [H, F] with"
                     " H = %" PRId64 ", F = %" PRId64, layer, which, hidden, width);
}

int open_expert(const mote_expert &from, const char *which, Expert *expert) {
  if (from.gate.bias || from.up.bias || from.down.bias)
    return fail(MOTE_BAD_ARGUMENT, "%s: has a bias; experts have none", which);
  if (int status = open_linear(from.gate, which, &expert->gate)) return status;
  if (int status = open_linear(from.up, which, &expert->up)) return status;
  return open_linear(from.down, which, &expert->down);
}

// Softmax over the router's logits, then the top_k largest, the lowest index among equals.
void choose(const mote_ffn &settings, const float *logits_E, int32_t *expert_k, float *gate_k) {
  const int32_t experts = settings.num_experts;
  const float top = *std::max_element(logits_E, logits_E + experts);
  float total = 0;
  for (int32_t e = 0; e < experts; ++e) total += std::exp(logits_E[e] - top);
  float chosen = 0;
  for (int32_t k = 0; k < settings.top_k; ++k) {
    int32_t best = -1;
    for (int32_t e = 0; e < experts; ++e) {
      const bool taken = std::find(expert_k, expert_k + k, e) != expert_k + k;
      if (!taken && (best < 0 || logits_E[e] > logits_E[best])) best = e;
    }
    expert_k[k] = best;
    gate_k[k] = std::exp(logits_E[best] - top) / total;
    chosen += gate_k[k];
  }
  if (settings.renormalize)
    for (int32_t k = 0; k < settings.top_k; ++k) gate_k[k] /= chosen;
}

// Stable counting sort: row_R of every (token, rank), and where each expert's rows start.
std::vector<int64_t> sort_rows(const mote_ffn &settings, const int32_t *expert_R, int64_t rows, int64_t *row_R) {
  std::vector<int64_t> start(static_cast<size_t>(settings.num_experts) + 1, 0);
  for (int64_t r = 0; r < rows; ++r) ++start[static_cast<size_t>(expert_R[r]) + 1];
  for (size_t e = 1; e < start.size(); ++e) start[e] += start[e - 1];
  std::vector<int64_t> next(start);
  for (int64_t r = 0; r < rows; ++r) row_R[r] = next[static_cast<size_t>(expert_R[r])]++;
  return start;
}

struct Mixer {
  const Isa &isa;
  const Ffn &ffn;
  FfnScratch &s;
  int64_t tokens, rows;
  int32_t threads;
  std::vector<int64_t> start;  // rows of expert e: start[e] .. start[e + 1]
  std::vector<Product> products;

  // One token reads each matrix from RAM once, in one stream; more tokens save the memory of a product.
  bool fused() const { return tokens > 1; }
  int hold() const;
  void gate_and_up(const Expert &expert, Input &input, int64_t first, int64_t count, float *gate, float *up);
  int hidden_states(Input &h, Input &x);
  int outputs();
  void combine(float *y_TH, int64_t y_stride) const;
};

int Mixer::hold() const {
  const int64_t shared = ffn.has_shared ? tokens : 0;
  for (auto [buffer, count] : {std::pair{&s.gate_TF, shared * ffn.width},
                               {&s.up_TF, fused() ? 0 : shared * ffn.width},
                               {&s.shared_TH, shared * ffn.hidden},
                               {&s.gate_RF, rows * ffn.width},
                               {&s.up_RF, fused() ? 0 : rows * ffn.width},
                               {&s.routed_RH, rows * ffn.hidden}})
    if (int status = buffer->hold(count)) return status;
  return MOTE_OK;
}

void Mixer::gate_and_up(const Expert &expert, Input &input, int64_t first, int64_t count, float *gate, float *up) {
  if (fused()) {
    products.push_back({&expert.gate, &input, first, count, gate, ffn.width, &expert.up});
  } else {
    products.push_back({&expert.gate, &input, first, count, gate, ffn.width});
    products.push_back({&expert.up, &input, first, count, up, ffn.width});
  }
}

// silu(gate) * up of all experts, into gate_TF and gate_RF.
int Mixer::hidden_states(Input &h, Input &x) {
  const int64_t width = ffn.width;
  products.clear();
  if (ffn.has_shared) gate_and_up(ffn.shared, h, 0, tokens, s.gate_TF.get(), s.up_TF.get());
  for (size_t e = 0; e < ffn.experts.size(); ++e) {
    const int64_t first = start[e], count = start[e + 1] - first;
    if (count == 0) continue;
    // All rows of a single token are that token.
    const int64_t from = tokens == 1 ? 0 : first;
    gate_and_up(ffn.experts[e], x, from, count, s.gate_RF.get() + first * width, s.up_RF.get() + first * width);
  }
  if (int status = multiply(isa, products.data(), static_cast<int64_t>(products.size()), threads)) return status;
  if (fused()) return MOTE_OK;
  if (ffn.has_shared) isa.floats->silu_multiply(s.gate_TF.get(), s.up_TF.get(), tokens * width, s.gate_TF.get());
  isa.floats->silu_multiply(s.gate_RF.get(), s.up_RF.get(), rows * width, s.gate_RF.get());
  return MOTE_OK;
}

// down of all experts, into shared_TH and routed_RH.
int Mixer::outputs() {
  Input shared(s.gate_TF.get(), ffn.has_shared ? tokens : 0, ffn.width, ffn.width);
  Input routed(s.gate_RF.get(), rows, ffn.width, ffn.width);
  products.clear();
  if (ffn.has_shared) products.push_back({&ffn.shared.down, &shared, 0, tokens, s.shared_TH.get(), ffn.hidden});
  for (size_t e = 0; e < ffn.experts.size(); ++e)
    if (const int64_t first = start[e], count = start[e + 1] - first; count > 0)
      products.push_back({&ffn.experts[e].down, &routed, first, count, s.routed_RH.get() + first * ffn.hidden, ffn.hidden});
  return multiply(isa, products.data(), static_cast<int64_t>(products.size()), threads);
}

void Mixer::combine(float *y_TH, int64_t y_stride) const {
  const int32_t top_k = rows > 0 ? ffn.settings->top_k : 0;
  each(threads, tokens, kSerialTokens, [&](int64_t t) {
    float *y = y_TH + t * y_stride;
    float kept = 1;
    std::fill_n(y, ffn.hidden, 0.0f);
    if (top_k > 0) {
      float total = 0;
      for (int32_t k = 0; k < top_k; ++k) {
        const float gate = s.gate_Tk.get()[t * top_k + k];
        isa.floats->add_scaled(gate, s.routed_RH.get() + s.row_R.get()[t * top_k + k] * ffn.hidden, ffn.hidden, y);
        total += gate;
      }
      if (ffn.settings->combine == MOTE_CONVEX) kept = 1 - total;
    }
    if (ffn.has_shared) isa.floats->add_scaled(kept, s.shared_TH.get() + t * ffn.hidden, ffn.hidden, y);
  });
}
}  // namespace

int open_ffn(const mote_ffn &settings, int64_t hidden, int64_t layer, Ffn *ffn) {
  const int32_t experts = settings.num_experts;
  if (experts < 0 || experts > 65536 || (experts > 0 && (!settings.experts || !settings.router)) ||
      (experts == 0 && !settings.shared))
    return fail(MOTE_BAD_ARGUMENT, "layer %" PRId64 ": %d routed experts without their matrices or router, or no expert"
                " at all", layer, experts);
  if (experts > 0 && (settings.top_k < 1 || settings.top_k > experts))
    return fail(MOTE_BAD_ARGUMENT, "layer %" PRId64 ": top_k=%d of %d experts; use 1 to all", layer, settings.top_k, experts);
  if (settings.combine != MOTE_ADD && (settings.combine != MOTE_CONVEX || !settings.shared))
    return fail(MOTE_BAD_ARGUMENT, "layer %" PRId64 ": combine=%d is unknown, or needs a shared expert", layer,
                settings.combine);
  ffn->settings = &settings;
  ffn->has_shared = settings.shared != nullptr;
  ffn->hidden = hidden;
  ffn->width = ffn->has_shared ? settings.shared->gate.rows : settings.experts[0].gate.rows;
  if (ffn->has_shared) {
    if (int status = open_expert(*settings.shared, "shared expert", &ffn->shared)) return status;
    if (int status = check_expert(ffn->shared, hidden, ffn->width, layer, "shared")) return status;
  }
  ffn->experts.resize(static_cast<size_t>(experts));
  for (int32_t e = 0; e < experts; ++e) {
    Expert &expert = ffn->experts[static_cast<size_t>(e)];
    if (int status = open_expert(settings.experts[e], "routed expert", &expert)) return status;
    if (int status = check_expert(expert, hidden, ffn->width, layer, "routed")) return status;
  }
  return MOTE_OK;
}

int route(const Isa &isa, const Ffn &ffn, const float *h_TH, int64_t tokens, int64_t h_stride, FfnScratch *scratch,
          int32_t threads) {
  const mote_ffn &settings = *ffn.settings;
  const int64_t experts = settings.num_experts, top_k = settings.top_k;
  if (experts == 0) return MOTE_OK;
  if (int status = scratch->logits_TE.hold(tokens * experts)) return status;
  if (int status = scratch->gate_Tk.hold(tokens * top_k)) return status;
  if (int status = scratch->expert_Tk.hold(tokens * top_k)) return status;
  each(threads, tokens, kSerialTokens, [&](int64_t t) {
    float *logits_E = scratch->logits_TE.get() + t * experts;
    isa.floats->rows_dot(MOTE_F32, reinterpret_cast<const uint8_t *>(settings.router), experts, ffn.hidden,
                         h_TH + t * h_stride, h_stride, 1, logits_E, experts);
    choose(settings, logits_E, scratch->expert_Tk.get() + t * top_k, scratch->gate_Tk.get() + t * top_k);
  });
  return MOTE_OK;
}

int mix(const Isa &isa, const Ffn &ffn, const float *h_TH, int64_t tokens, int64_t h_stride, float *y_TH,
        int64_t y_stride, FfnScratch *scratch, int32_t threads) {
  const mote_ffn &settings = *ffn.settings;
  const int64_t top_k = settings.num_experts > 0 ? settings.top_k : 0, rows = tokens * top_k;
  // Far above any model, far below an int64 size's end.
  if (rows > (int64_t{1} << 58) / std::max(ffn.width, ffn.hidden))
    return fail(MOTE_BAD_ARGUMENT, "%" PRId64 " routed rows of %" PRId64 " numbers are out of range", rows, ffn.width);
  Mixer mixer{isa, ffn, *scratch, tokens, rows, threads, {}, {}};
  if (int status = mixer.hold()) return status;
  Input h(h_TH, tokens, ffn.hidden, h_stride);
  const float *x = h_TH;
  int64_t x_stride = h_stride;
  if (rows > 0) {
    if (int status = scratch->row_R.hold(rows)) return status;
    mixer.start = sort_rows(settings, scratch->expert_Tk.get(), rows, scratch->row_R.get());
    if (tokens > 1) {
      if (int status = scratch->x_RH.hold(rows * ffn.hidden)) return status;
      x = scratch->x_RH.get();
      x_stride = ffn.hidden;
      for (int64_t r = 0; r < rows; ++r)
        std::memcpy(scratch->x_RH.get() + scratch->row_R.get()[r] * ffn.hidden, h_TH + r / top_k * h_stride,
                    static_cast<size_t>(ffn.hidden) * sizeof(float));
    }
  }
  Input gathered(x, tokens == 1 ? 1 : rows, ffn.hidden, x_stride);
  if (int status = mixer.hidden_states(h, tokens == 1 ? h : gathered)) return status;
  if (int status = mixer.outputs()) return status;
  mixer.combine(y_TH, y_stride);
  return MOTE_OK;
}
}  // namespace mote

extern "C" int mote_ffn_f32(const mote_ffn *settings, const float *h, int64_t tokens, int64_t h_stride, float *y,
                            int64_t y_stride, int32_t *expert, float *gate, int32_t threads) {
  using namespace mote;
  if (!settings || (!settings->shared && (!settings->experts || settings->num_experts < 1)))
    return fail(MOTE_BAD_ARGUMENT, "the feed-forward layer is a null pointer or has no expert");
  const int64_t hidden = settings->shared ? settings->shared->gate.cols : settings->experts[0].gate.cols;
  if (tokens < 0 || tokens > (int64_t{1} << 24) || h_stride < hidden || y_stride < hidden || threads < 1 ||
      !fits(tokens, h_stride) || !fits(tokens, y_stride) || (tokens > 0 && (!h || !y)))
    return fail(MOTE_BAD_ARGUMENT, "%" PRId64 " tokens with strides %" PRId64 " and %" PRId64 " on %d threads do not fit"
                " a layer of hidden size %" PRId64, tokens, h_stride, y_stride, threads, hidden);
  const Isa *isa = chosen_isa();
  if (!isa) return MOTE_UNSUPPORTED;
  try {
    Ffn ffn;
    FfnScratch scratch;
    if (int status = open_ffn(*settings, hidden, 0, &ffn)) return status;
    if (tokens == 0) return MOTE_OK;
    if (int status = route(*isa, ffn, h, tokens, h_stride, &scratch, threads)) return status;
    if (int status = mix(*isa, ffn, h, tokens, h_stride, y, y_stride, &scratch, threads)) return status;
    const int64_t rows = settings->num_experts > 0 ? tokens * settings->top_k : 0;
    if (expert && rows) std::copy_n(scratch.expert_Tk.get(), rows, expert);
    if (gate && rows) std::copy_n(scratch.gate_Tk.get(), rows, gate);
    return MOTE_OK;
  } catch (const std::bad_alloc &) {
    return fail(MOTE_NO_MEMORY, "no memory for a feed-forward layer");
  }
}
