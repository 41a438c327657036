// Sizes that must be refused: of matrices without a look at memory, where the pointers are wild; of layers and decoders
// one by one, in a call that is good but for them.
#include <algorithm>

#include "native_toys.h"

namespace {

int64_t passed = 0;

void refuse_matrices() {
  const auto *wild = reinterpret_cast<const uint8_t *>(16);
  const auto *x = reinterpret_cast<const int8_t *>(16);
  auto *y = reinterpret_cast<int32_t *>(16);
  const mote_matrix bad[] = {
      matrix(nullptr, 1024, 64, 16, 0, MOTE_2BIT), matrix(wild, 255, 64, 16, 0, MOTE_2BIT),
      matrix(wild, 256, 65, 16, 0, MOTE_2BIT),     matrix(wild, 256, 0, 16, 0, MOTE_2BIT),
      matrix(wild, 256, 64, -16, 0, MOTE_2BIT),    matrix(wild, 256, 64, 16, 7, MOTE_2BIT),
      matrix(wild, 256, 64, 16, -20, MOTE_BASE3),  matrix(wild, 256, 64, 16, 0, 11),
      matrix(wild, INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX, MOTE_BASE3),
      matrix(wild, 256, INT64_MIN, INT64_MIN, 0, MOTE_BASE3),
      matrix(wild, 512, 64, 16, 0, MOTE_INT4),     matrix(wild, 512, 64, 16, 12, MOTE_INT4),
      matrix(wild, 512, 64, 16, 1032, MOTE_INT4),  matrix(wild, 511, 64, 16, 32, MOTE_INT4),
      matrix(wild, 1024, 64, 16, 6, MOTE_INT8),    matrix(wild, 512, 64, 16, 32, MOTE_INT8),
      matrix(wild, INT64_MAX, 64, INT64_MAX, INT64_MAX, MOTE_INT8),
      matrix(wild, 256, 64, 16, 8, MOTE_INT2),     matrix(wild, 768, 64, 16, 0, MOTE_INT3),
      matrix(wild, 768, 64, 16, 48, MOTE_INT3),    matrix(wild, 256, 64, 16, 32, MOTE_INT3),
      matrix(wild, 768, 64, 16, 24, MOTE_INT6),    matrix(wild, 1536, 64, 16, 16, MOTE_INT6),
      matrix(wild, 768, 64, 16, 2048, MOTE_INT6),  matrix(wild, 1024, 64, 16, 0, MOTE_UINT8),
  };
  for (const mote_matrix &w : bad) {
    if (mote_matmul_i32(&w, x, 1, 16, y, 64, 1) != MOTE_BAD_ARGUMENT) stop("a bad matrix was accepted");
    if (mote_linear_f32(&w, reinterpret_cast<const float *>(x), 1, 16, reinterpret_cast<float *>(y), 64, 1) !=
        MOTE_BAD_ARGUMENT)
      stop("a bad matrix was accepted");
    ++passed;
  }
}

void refuse_scales() {
  const auto *wild = reinterpret_cast<const uint8_t *>(16);
  const auto *x = reinterpret_cast<const float *>(16);
  auto *y = reinterpret_cast<float *>(16);
  mote_matrix w = matrix(wild, 256, 64, 16, 0, MOTE_2BIT);
  const auto refused = [&](const void *scale, int64_t scales, int32_t granularity) {
    w.scale = scale;
    w.scales = scales;
    w.granularity = granularity;
    return mote_linear_f32(&w, x, 1, 16, y, 64, 1) == MOTE_BAD_ARGUMENT;
  };
  bool all = refused(nullptr, 1, MOTE_TENSOR) && refused(wild, 2, MOTE_TENSOR) && refused(wild, 63, MOTE_ROW) &&
             refused(wild, 64, MOTE_GROUP) && refused(wild, 1, 3) && refused(wild, 1, -1);
  w = matrix(wild, 512, 64, 16, 8, MOTE_INT4);
  all = all && refused(wild, 64, MOTE_GROUP) && refused(nullptr, 128, MOTE_GROUP) && refused(wild, 128, MOTE_ROW);
  const auto refused_zero = [&](const void *zero, int64_t zeros) {
    w.zero = zero;
    w.zeros = zeros;
    return refused(wild, 128, MOTE_GROUP);
  };
  all = all && refused_zero(wild, 127) && refused_zero(wild, INT64_MAX) && refused_zero(nullptr, 128);
  w = matrix(wild, 1024, 64, 16, 8, MOTE_INT8);
  all = all && refused_zero(wild, 128);
  w = matrix(wild, 256, 64, 16, 0, MOTE_2BIT);
  w.zero = wild;
  w.zeros = 1;
  all = all && refused(wild, 1, MOTE_TENSOR);
  w = matrix(wild, 2048, 64, 16, 0, MOTE_BF16);
  all = all && refused(wild, 1, MOTE_TENSOR);
  if (!all) stop("bad scales were accepted");
  ++passed;
}

void refuse_calls() {
  const auto *wild = reinterpret_cast<const uint8_t *>(16);
  const auto *x = reinterpret_cast<const int8_t *>(16);
  auto *y = reinterpret_cast<int32_t *>(16);
  const mote_matrix w = matrix(wild, 256, 64, 16, 0, MOTE_2BIT), dense = matrix(wild, 2048, 64, 16, 0, MOTE_BF16);
  bool refused = mote_matmul_i32(&w, x, -1, 16, y, 64, 1) && mote_matmul_i32(&w, x, 1, 15, y, 64, 1) &&
                 mote_matmul_i32(&w, x, 1, 16, y, 63, 1) && mote_matmul_i32(&w, x, 1, 16, y, 64, 0) &&
                 mote_matmul_i32(nullptr, x, 1, 16, y, 64, 1) && mote_matmul_i32(&w, x, 4, INT64_MAX, y, 64, 1) &&
                 mote_matmul_i32(&w, x, 4, 16, y, INT64_MAX, 1) && mote_matmul_i32(&dense, x, 1, 16, y, 64, 1);
  const int64_t rows[] = {0, 64}, negative[] = {-1};
  auto *out = reinterpret_cast<float *>(16);
  refused = refused && mote_rows_f32(&dense, rows, 2, out, 16) && mote_rows_f32(&dense, negative, 1, out, 16) &&
            mote_rows_f32(&dense, rows, 1, out, 15) && mote_rows_f32(&dense, rows, -1, out, 16) &&
            mote_rows_f32(&dense, nullptr, 1, out, 16) && mote_rows_f32(&dense, rows, 1, nullptr, 16) &&
            mote_rows_f32(nullptr, rows, 1, out, 16) && mote_rows_f32(&w, rows, 1, out, 16) &&
            mote_rows_f32(&dense, rows, 1, out, INT64_MAX);
  const auto *floats = reinterpret_cast<const float *>(16);
  auto *integers = reinterpret_cast<int8_t *>(16);
  const int64_t wide = int64_t{1} << 40;
  refused = refused && mote_quantize_activation(floats, 1, wide, wide, integers, wide, out);
  if (!refused) stop("bad sizes were accepted");
  ++passed;
}

void refuse_ffns() {
  const auto *wild = reinterpret_cast<const uint8_t *>(16);
  const auto *h = reinterpret_cast<const float *>(16);
  auto *y = reinterpret_cast<float *>(16);
  mote_ffn none{};
  none.experts = reinterpret_cast<const mote_expert *>(wild);
  bool refused = mote_ffn_f32(&none, h, 1, 16, y, 16, nullptr, nullptr, 1) == MOTE_BAD_ARGUMENT;
  mote_expert expert{};
  expert.gate = expert.up = expert.down = matrix(wild, 512, 16, 16, 0, MOTE_BF16);
  mote_ffn shared{};
  shared.shared = &expert;
  refused = refused && mote_ffn_f32(&shared, h, 4, INT64_MAX, y, 16, nullptr, nullptr, 1) == MOTE_BAD_ARGUMENT &&
            mote_ffn_f32(&shared, h, 4, 16, y, INT64_MAX, nullptr, nullptr, 1) == MOTE_BAD_ARGUMENT;
  if (!refused) stop("a bad feed-forward layer was accepted");
  ++passed;
}

void refused(int status, const char *what) {
  if (status != MOTE_BAD_ARGUMENT) stop(std::string("accepted: ") + what);
  ++passed;
}

void refuse_layers() {
  ToyFfn layer({MOTE_2BIT, 0}, {MOTE_INT4, 8}, 24, 40, 3, 2, MOTE_ADD);
  auto h = block<float>(24), y = block<float>(24);
  const auto call = [&](const mote_ffn *ffn) {
    return mote_ffn_f32(ffn, h.get(), 1, 24, y.get(), 24, nullptr, nullptr, 1);
  };
  const auto change = [&](const char *what, auto edit) {
    mote_ffn ffn = layer.ffn;
    edit(ffn);
    refused(call(&ffn), what);
  };
  const auto sized = [&](const float *from, int64_t tokens, int64_t from_stride, float *to, int64_t to_stride,
                         int32_t threads) {
    return mote_ffn_f32(&layer.ffn, from, tokens, from_stride, to, to_stride, nullptr, nullptr, threads);
  };
  refused(call(nullptr), "no layer");
  refused(sized(nullptr, 1, 24, y.get(), 24, 1), "no inputs");
  refused(sized(h.get(), 1, 24, nullptr, 24, 1), "no outputs");
  refused(sized(h.get(), -1, 24, y.get(), 24, 1), "a negative number of tokens");
  refused(sized(h.get(), 1, 23, y.get(), 24, 1), "rows of inputs that overlap");
  refused(sized(h.get(), 1, 24, y.get(), 23, 1), "rows of outputs that overlap");
  refused(sized(h.get(), 1, 24, y.get(), 24, 0), "no threads");
  change("top_k above the experts", [](mote_ffn &f) { f.top_k = 4; });
  change("top_k of none", [](mote_ffn &f) { f.top_k = 0; });
  change("negative top_k", [](mote_ffn &f) { f.top_k = -1; });
  change("negative number of experts", [](mote_ffn &f) { f.num_experts = -3; });
  change("too many experts", [](mote_ffn &f) { f.num_experts = INT32_MAX; });
  change("experts without matrices", [](mote_ffn &f) { f.experts = nullptr; });
  change("experts without a router", [](mote_ffn &f) { f.router = nullptr; });
  change("an unknown combine", [](mote_ffn &f) { f.combine = 2; });
  change("convex without a shared expert", [](mote_ffn &f) { f.combine = MOTE_CONVEX, f.shared = nullptr; });
  const auto change_matrix = [&](const char *what, auto edit) {
    for (mote_expert *expert : {&layer.shared, &layer.experts[2]})
      for (mote_matrix *w : {&expert->gate, &expert->up, &expert->down}) {
        const mote_matrix before = *w;
        edit(*w);
        refused(call(&layer.ffn), what);
        *w = before;
      }
  };
  change_matrix("a matrix without data", [](mote_matrix &w) { w.data = nullptr; });
  change_matrix("a matrix of other rows", [](mote_matrix &w) { w.rows -= 1; });  // the bytes of strips are the same
  change_matrix("a matrix of other columns", [](mote_matrix &w) { w.cols += 100; });
  change_matrix("a matrix without scales", [](mote_matrix &w) { w.scale = nullptr; });
  change_matrix("a matrix with a bias", [&](mote_matrix &w) { w.bias = h.get(); });
}

void refuse_decoders() {
  const ToyDecoder good(MOTE_F32);
  auto x = block<float>(3 * ToyDecoder::kHidden), logits = block<float>(ToyDecoder::kVocabulary);
  auto cache = block<char>(mote_kv_block_bytes(&good.d));
  std::fill_n(x.get(), 3 * ToyDecoder::kHidden, 0.5f);
  struct Call {
    mote_decoder d;
    mote_layer layers[2];
    void *blocks[1];
    mote_span span;
    int64_t num_spans, row, num_rows;
    int32_t cancel, threads;
  };
  const auto change = [&](const char *what, auto edit, int expected = MOTE_BAD_ARGUMENT) {
    Call c{good.d, {good.layers[0], good.layers[1]}, {cache.get()}, {0, 3, nullptr, 1}, 1, 2, 1, 0, 1};
    c.d.layers = c.layers;
    c.span.blocks = c.blocks;
    edit(c);
    if (mote_decoder_f32(&c.d, x.get(), &c.span, c.num_spans, &c.row, c.num_rows, logits.get(), nullptr, nullptr,
                         &c.cancel, nullptr, c.threads) != expected)
      stop(std::string("another status than expected: ") + what);
    ++passed;
  };
  const auto pointers = [&](const mote_decoder *d, float *in, bool spans, const int64_t *rows, float *out) {
    void *const blocks[] = {cache.get()};
    const mote_span span{0, 3, blocks, 1};
    return mote_decoder_f32(d, in, spans ? &span : nullptr, 1, rows, 1, out, nullptr, nullptr, nullptr, nullptr, 1);
  };
  const int64_t row = 2;
  refused(pointers(nullptr, x.get(), true, &row, logits.get()), "no decoder");
  refused(pointers(&good.d, nullptr, true, &row, logits.get()), "no inputs");
  refused(pointers(&good.d, x.get(), false, &row, logits.get()), "no spans");
  refused(pointers(&good.d, x.get(), true, nullptr, logits.get()), "no rows");
  refused(pointers(&good.d, x.get(), true, &row, nullptr), "no logits");
  if (mote_kv_block_bytes(nullptr) != -1) stop("accepted: blocks of no decoder");
  change("the good call", [](Call &) {}, MOTE_OK);
  change("a cancelled call", [](Call &c) { c.cancel = 1; }, MOTE_CANCELLED);
  change("no layers", [](Call &c) { c.d.layers = nullptr; });
  change("no number of layers", [](Call &c) { c.d.num_layers = 0; });
  change("too many layers", [](Call &c) { c.d.num_layers = INT64_MAX; });
  change("another hidden size", [](Call &c) { c.d.hidden += 1; });
  change("an absurd hidden size", [](Call &c) { c.d.hidden = INT64_MAX; });
  change("heads that kv heads do not divide", [](Call &c) { c.d.kv_heads = 3; });
  change("more kv heads than heads", [](Call &c) { c.d.kv_heads = 8; });
  change("negative heads", [](Call &c) { c.d.heads = -4, c.d.kv_heads = -2; });
  change("an odd head size", [](Call &c) { c.d.head_dim = 5; });
  change("a head size that does not fit", [](Call &c) { c.d.head_dim = 256; });
  change("keys in int8", [](Call &c) { c.d.kv_format = MOTE_INT8; });
  change("no final norm", [](Call &c) { c.d.final_norm = nullptr; });
  change("no frequencies", [](Call &c) { c.d.inv_freq = nullptr; });
  change("no norm", [](Call &c) { c.layers[1].post_norm = nullptr; });
  change("no values", [](Call &c) { c.layers[1].v.data = nullptr; });
  change("keys of another size", [](Call &c) { c.layers[1].k = c.layers[1].q; });
  change("a head of another size", [](Call &c) { c.d.head = c.layers[0].ffn.shared->down; });
  change("top_k above the experts", [](Call &c) { c.layers[0].ffn.top_k = 4; });
  change("a layer without experts", [](Call &c) { c.layers[1].ffn.shared = nullptr; });
  change("no spans", [](Call &c) { c.num_spans = 0; });
  change("absurdly many spans", [](Call &c) { c.num_spans = INT64_MAX; });
  change("a span without tokens", [](Call &c) { c.span.tokens = 0; });
  change("a negative start", [](Call &c) { c.span.start = -1; });
  change("an absurd start", [](Call &c) { c.span.start = INT64_MAX, c.span.num_blocks = INT64_MAX; });
  change("a span that its blocks do not hold", [](Call &c) { c.span.start = 30; });
  change("a span without blocks", [](Call &c) { c.span.blocks = nullptr; });
  change("a block that is no block", [](Call &c) { c.blocks[0] = nullptr; });
  change("logits of a token after the last", [](Call &c) { c.row = 3; });
  change("logits of a token before the first", [](Call &c) { c.row = -1; });
  change("a negative number of logits", [](Call &c) { c.num_rows = -1; });
  change("no threads", [](Call &c) { c.threads = 0; });
}
}  // namespace

int64_t refusals() {
  refuse_matrices();
  refuse_scales();
  refuse_calls();
  refuse_ffns();
  refuse_layers();
  refuse_decoders();
  return passed;
}
