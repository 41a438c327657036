// Checks of a decoder: nothing runs before every size, pointer and scale count fits.
#include <algorithm>
#include <string>

#include "decoder.h"

namespace mote {

int check_decoder(const mote_decoder &d) {
  const bool positive = d.num_layers > 0 && d.hidden > 0 && d.heads > 0 && d.kv_heads > 0 && d.head_dim > 0;
  const bool bounded = d.num_layers <= 4096 && d.hidden <= (1 << 20) && d.heads <= 4096 && d.head_dim <= 256;
  if (!positive || !bounded || d.heads % d.kv_heads != 0 || d.head_dim % 2 != 0)
    return fail(MOTE_BAD_ARGUMENT, "a decoder of %" PRId64 " layers, hidden size %" PRId64 ", %" PRId64 " heads over %" PRId64
                " kv heads of %" PRId64 " is out of range (heads a multiple of kv heads, an even head size up to 256)",
                d.num_layers, d.hidden, d.heads, d.kv_heads, d.head_dim);
  if (d.kv_format != MOTE_BF16 && d.kv_format != MOTE_F32)
    return fail(MOTE_BAD_ARGUMENT, "kv_format %d is unknown; use 5 (bf16) or 6 (f32)", d.kv_format);
  if (!d.layers || !d.final_norm || !d.inv_freq) return fail(MOTE_BAD_ARGUMENT, "the decoder lacks layers, norm or inv_freq");
  return MOTE_OK;
}

namespace {
int open_sized(const mote_matrix &w, const char *what, int64_t layer, int64_t rows, int64_t cols, Linear *linear) {
  if (int status = open_linear(w, what, linear)) {
    const std::string why = mote_last_error();
    return fail(status, "layer %" PRId64 ": %s", layer, why.c_str());
  }
  if (w.rows != rows || w.cols != cols)
    return fail(MOTE_BAD_ARGUMENT, "layer %" PRId64 ": %s is %" PRId64 " x %" PRId64 ", not %" PRId64 " x %" PRId64, layer,
                what, w.rows, w.cols, rows, cols);
  return MOTE_OK;
}

int open_layer(const mote_decoder &d, int64_t index, Layer *layer) {
  const mote_layer &from = d.layers[index];
  const int64_t width = d.heads * d.head_dim, kv_width = d.kv_heads * d.head_dim;
  if (!from.input_norm || !from.post_norm) return fail(MOTE_BAD_ARGUMENT, "layer %" PRId64 " lacks a norm", index);
  if (int status = open_sized(from.q, "q", index, width, d.hidden, &layer->q)) return status;
  if (int status = open_sized(from.k, "k", index, kv_width, d.hidden, &layer->k)) return status;
  if (int status = open_sized(from.v, "v", index, kv_width, d.hidden, &layer->v)) return status;
  if (int status = open_sized(from.o, "o", index, d.hidden, width, &layer->o)) return status;
  return open_ffn(from.ffn, d.hidden, index, &layer->ffn);
}
}  // namespace

int open_decoder(const mote_decoder &d, OpenDecoder *opened) {
  if (int status = check_decoder(d)) return status;
  opened->layers.resize(static_cast<size_t>(d.num_layers));
  for (int64_t i = 0; i < d.num_layers; ++i) {
    if (int status = open_layer(d, i, &opened->layers[static_cast<size_t>(i)])) return status;
    if (d.layers[i].ffn.num_experts > 0) opened->top_k = std::max<int64_t>(opened->top_k, d.layers[i].ffn.top_k);
  }
  if (int status = open_linear(d.head, "head", &opened->head)) return status;
  if (d.head.cols != d.hidden)
    return fail(MOTE_BAD_ARGUMENT, "the head takes %" PRId64 " inputs, the decoder gives %" PRId64, d.head.cols, d.hidden);
  return MOTE_OK;
}
}  // namespace mote
