/* The only door to libmote: plain C, no torch, no Python.
 *
 * Matrices W (rows N = outputs, columns K = inputs) of ternary weights or of integers of 2 to 8 bits lie packed in strips
 * of 64 rows, in the order of docs/reference/packed-format.md, which is also the order on disk. Activations are int8 with
 * one fp32 scale a token (ternary) or a token and scale group (integers); their products accumulate exactly in int32, so
 * every ISA and any number of threads gives the same bits. BF16 and fp32 matrices lie row by row and are multiplied in
 * fp32, in one order of sums on every ISA.
 *
 * Every call returns a status and checks its sizes before it reads or writes memory; mote_last_error() then says in
 * one line what was wrong (per thread, valid until that thread's next failing call). Pointers need no alignment beyond
 * that of their type. Strides count elements. Legend: N rows, K cols, T tokens, G scale groups.
 */
#ifndef MOTE_H
#define MOTE_H

#include <stddef.h>
#include <stdint.h>

#if defined(__cplusplus)
extern "C" {
#endif
#define MOTE_API __attribute__((visibility("default")))

/* Raised whenever a signature or the packed order changes; the caller compares it with its own. */
#define MOTE_ABI 3

enum {
  MOTE_OK = 0, MOTE_BAD_ARGUMENT = 1, MOTE_BAD_VALUE = 2, MOTE_NO_MEMORY = 3, MOTE_UNSUPPORTED = 4, MOTE_CANCELLED = 5
};
/* Formats. 2bit, base3 (ternary) and integers lie packed in strips; bf16 and f32 row-major [N, K], as in any checkpoint.
 * uint8: the bytes of int8 with a 256th level, for grids with zero points. */
enum {
  MOTE_2BIT = 1, MOTE_BASE3 = 2, MOTE_INT4 = 3, MOTE_INT8 = 4, MOTE_BF16 = 5, MOTE_F32 = 6, MOTE_INT2 = 7, MOTE_INT3 = 8,
  MOTE_INT6 = 9, MOTE_UINT8 = 10
};
enum { MOTE_TENSOR = 0, MOTE_ROW = 1, MOTE_GROUP = 2 };       /* ternary scales: one, [N], or [N, G] */

/* One matrix W [N, K] with all that its product needs.
 * group: inputs per scale group (0: none); each scale group starts on a fresh k-group. Integers always have groups.
 * scale: 2bit, base3: fp32, as granularity says; integers: bf16 [strips, G, 64]; bf16, f32: NULL.
 * zero: of integers other than int8, whose weights then are scale * (code - zero), code = q + 2^(B-1) for B bits. */
typedef struct {
  const uint8_t *data;
  int64_t bytes;  /* size of data; must be what mote_packed_bytes says */
  const void *scale;
  int64_t scales; /* numbers at scale */
  const float *bias; /* [N], added last, or NULL */
  int64_t rows, cols, group;
  int32_t format, granularity;
  const void *zero; /* bf16, as many as scales and in their order, or NULL */
  int64_t zeros;    /* numbers at zero */
} mote_matrix;

MOTE_API int mote_abi(void);
MOTE_API const char *mote_version(void);
MOTE_API const char *mote_last_error(void);

/* Name of the kernels in use: the best that this CPU runs, or the one that the environment variable MOTE_ISA names
 * (scalar, avx2, avx512vl, avxvnni, avx512vnni, neon). NULL, with an error, when MOTE_ISA names none that runs here. */
MOTE_API const char *mote_isa(void);
/* Space-separated names of those that run here, best first. */
MOTE_API const char *mote_isas(void);
/* Chooses the kernels of the whole process from now on; NULL or "" goes back to the choice at start. */
MOTE_API int mote_select_isa(const char *name);

/* Bytes of a packed matrix, or -1 with an error. */
MOTE_API int64_t mote_packed_bytes(int32_t format, int64_t rows, int64_t cols, int64_t group);
/* q int8 [N, K] -> out, exactly out_bytes = mote_packed_bytes(...). 2bit, base3: -1, 0, 1; int8: -127..127; other
 * integers of B bits: -2^(B-1)..2^(B-1) - 1; MOTE_BAD_VALUE on another value. */
MOTE_API int mote_pack(int32_t format, int64_t rows, int64_t cols, int64_t group, const int8_t *q, int64_t q_stride,
                       uint8_t *out, int64_t out_bytes);
/* The inverse. MOTE_BAD_VALUE on a byte that no packing writes (2-bit digit 3, base-3 byte above 242, int8 byte 0). */
MOTE_API int mote_unpack(const mote_matrix *w, int8_t *q, int64_t q_stride);

/* x fp32 [T, K] -> x_q int8 [T, K], s fp32 [T]: a = max(max|x|, 1e-5), x_q = clip(round(x * (127 / a)), -128, 127) to
 * nearest even, s = a / 127, all in fp32. A NaN or Inf makes its token's s NaN or Inf, so that it is never hidden. */
MOTE_API int mote_quantize_activation(const float *x, int64_t tokens, int64_t cols, int64_t x_stride, int8_t *x_q,
                                      int64_t x_q_stride, float *s);

/* y int32 [T, N] = x_q [T, K] . q^T, exact, whatever scales and zero points: for tests and for the curious. Not for
 * bf16, f32. */
MOTE_API int mote_matmul_i32(const mote_matrix *w, const int8_t *x_q, int64_t tokens, int64_t x_stride, int32_t *y,
                             int64_t y_stride, int32_t threads);

/* y fp32 [T, N] = x fp32 [T, K] . W^T (+ bias), in fp32, each operation rounded once, in this order, none fused:
 *   2bit, base3   x to int8 per token (x_q, s); acc exact;  MOTE_TENSOR, MOTE_ROW  y = float(acc) * (s * scale)
 *                 MOTE_GROUP  y = 0; for g in order: y = y + float(acc_g) * scale[n, g];  then y = y * s
 *   integers      x to int8 per token and scale group (x_q, s_g); y = 0; for g in order: y = y + float(acc_g) *
 *                 (scale[n, g] * s_g); then, with zero points, for g in order: y = y + (float(sum of x_q in g) * s_g) *
 *                 (scale[n, g] * (2^(B-1) - zero[n, g]))
 *   bf16, f32     16 running sums, sum j over inputs k = j modulo 16 in order, each step one fused multiply-add; then
 *                 sum j += sum j + h for h = 8, 4, 2, 1.
 * A row's bits depend on its own x only: not on the other tokens, the ISA (bf16 and f32: where fused multiply-add is
 * exact) or threads. Bytes of w are not checked for legal digits: illegal ones give wrong numbers, never a wild access. */
MOTE_API int mote_linear_f32(const mote_matrix *w, const float *x, int64_t tokens, int64_t x_stride, float *y,
                             int64_t y_stride, int32_t threads);

/* y fp32 [n, K] = dequantised rows of integers, bf16 or f32: the look-up of an embedding. */
MOTE_API int mote_rows_f32(const mote_matrix *w, const int64_t *rows, int64_t n, float *y, int64_t y_stride);

/* ---- one feed-forward layer: a shared expert, routed experts, or both ---- */
typedef struct {
  mote_matrix gate, up, down; /* [F, H], [F, H], [H, F]; no biases */
} mote_expert;

enum { MOTE_ADD = 0, MOTE_CONVEX = 1 };
/* y = S + sum_k gate_k R_k (add) or (1 - sum_k gate_k) S + sum_k gate_k R_k (convex); expert(h) = down(silu(gate h) * up h).
 * In fp32, from 0: routed experts are added by rank, the shared one last; nothing is fused.
 * Router: logits = router . h in fp32, p = softmax, the top_k largest logits (the lowest index among equals), gate = p,
 * divided by their sum with renormalize. A dense layer is one with a shared expert only. */
typedef struct {
  const mote_expert *shared;  /* NULL: none */
  const mote_expert *experts; /* [num_experts] */
  const float *router;        /* fp32 [num_experts, H] */
  int32_t num_experts, top_k, combine, renormalize;
} mote_ffn;

/* h fp32 [T, H] -> y fp32 [T, H]. expert int32 [T, top_k], gate fp32 [T, top_k]: the route taken, or NULL. */
MOTE_API int mote_ffn_f32(const mote_ffn *ffn, const float *h, int64_t tokens, int64_t h_stride, float *y,
                          int64_t y_stride, int32_t *expert, float *gate, int32_t threads);

/* ---- a decoder of the Llama family: pre-norm, rotary positions, grouped-query attention ---- */
#define MOTE_KV_TOKENS 32 /* tokens of one block of the key-value cache */

typedef struct {
  const float *input_norm, *post_norm; /* fp32 [H] */
  const float *q_norm, *k_norm;        /* fp32 [D], over each head, or NULL */
  mote_matrix q, k, v, o;              /* [heads * D, H], [kv_heads * D, H] twice, [H, heads * D] */
  mote_ffn ffn;
} mote_layer;

typedef struct {
  const mote_layer *layers;
  int64_t num_layers, hidden, heads, kv_heads, head_dim;
  const float *final_norm; /* fp32 [H] */
  mote_matrix head;        /* [V, H] */
  const float *inv_freq;   /* fp32 [D / 2]: rotary frequencies */
  float rope_factor;       /* what cosines and sines are multiplied by (1 but for some long-context scalings) */
  float eps;               /* of the norms */
  float attention_scale;   /* usually D^-1/2 */
  int32_t kv_format;       /* MOTE_BF16 or MOTE_F32: keys and values in the cache */
} mote_decoder;

/* New tokens of one sequence. blocks: of mote_kv_block_bytes each, holding `start` tokens already, with room for all. */
typedef struct {
  int64_t start, tokens;
  void *const *blocks;
  int64_t num_blocks;
} mote_span;

/* Where the time of a forward pass went, in nanoseconds, added to what is there. */
enum {
  MOTE_NORMS = 0, MOTE_PROJECTIONS = 1, MOTE_ATTENTION = 2, MOTE_ROUTER = 3, MOTE_EXPERTS = 4, MOTE_HEAD = 5,
  MOTE_PARTS = 6
};

/* Bytes of one block of the key-value cache, all layers together, or -1 with an error. */
MOTE_API int64_t mote_kv_block_bytes(const mote_decoder *decoder);

/* One forward pass over the new tokens of several sequences, x fp32 [T, H] (embeddings, span after span; overwritten).
 * Keys and values go into the blocks. logits fp32 [num_rows, V] of the tokens rows[0..num_rows) (indices into T).
 * expert int32 [num_layers, T, top_k] and gate fp32 of the same shape, or NULL: the routes (-1 in a dense layer;
 * top_k is the largest of all layers'). cancel: read between layers, a value other than 0 ends with MOTE_CANCELLED;
 * or NULL. nanoseconds: [MOTE_PARTS] or NULL. Rows of logits are bit-equal whatever else is in the batch, however the
 * sequence was cut into calls, and for any number of threads. */
MOTE_API int mote_decoder_f32(const mote_decoder *decoder, float *x, const mote_span *spans, int64_t num_spans,
                              const int64_t *rows, int64_t num_rows, float *logits, int32_t *expert, float *gate,
                              const int32_t *cancel, int64_t *nanoseconds, int32_t threads);

#if defined(__cplusplus)
}
#endif
#endif
