// One feed-forward layer: router, shared expert, routed experts (csrc/mote.h: mote_ffn).
#pragma once
#include <vector>

#include "linear.h"
#include "scratch.h"

namespace mote {

struct Expert {
  Linear gate, up, down;
};

// A layer whose sizes have been checked.
struct Ffn {
  const mote_ffn *settings = nullptr;
  bool has_shared = false;
  Expert shared;
  std::vector<Expert> experts;
  int64_t hidden = 0, width = 0;
};
// MOTE_OK fills *ffn. layer: for errors.
int open_ffn(const mote_ffn &settings, int64_t hidden, int64_t layer, Ffn *ffn);

// What a layer needs beside its weights; reused from layer to layer. T tokens, R = T * top_k routed rows, F width.
struct FfnScratch {
  Buffer<float> logits_TE, gate_Tk, x_RH, gate_TF, up_TF, gate_RF, up_RF, shared_TH, routed_RH;
  Buffer<int32_t> expert_Tk;
  Buffer<int64_t> row_R;  // where the routed row (t, k) stands among the rows sorted by expert
};

// The route of every token, into scratch.expert_Tk and scratch.gate_Tk.
int route(const Isa &isa, const Ffn &ffn, const float *h_TH, int64_t tokens, int64_t h_stride, FfnScratch *scratch,
          int32_t threads);
// y_TH from h_TH and the route in scratch.
int mix(const Isa &isa, const Ffn &ffn, const float *h_TH, int64_t tokens, int64_t h_stride, float *y_TH,
        int64_t y_stride, FfnScratch *scratch, int32_t threads);
}  // namespace mote
