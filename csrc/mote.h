/* The only door to libmote: plain C, no torch, no Python.
 *
 * Ternary matrices W (rows N = outputs, columns K = inputs, values -1, 0, 1) lie packed in strips of 64 rows, in the
 * order of docs/reference/packed-format.md, which is also the order on disk. Activations are int8 with one fp32 scale
 * a token. All products accumulate exactly in int32, so every ISA and any number of threads gives the same bits.
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
#define MOTE_ABI 1

enum { MOTE_OK = 0, MOTE_BAD_ARGUMENT = 1, MOTE_BAD_VALUE = 2, MOTE_NO_MEMORY = 3, MOTE_UNSUPPORTED = 4 };
enum { MOTE_2BIT = 1, MOTE_BASE3 = 2 };                       /* formats */
enum { MOTE_TENSOR = 0, MOTE_ROW = 1, MOTE_GROUP = 2 };       /* scales: one, one per row [N], one per row and group [N,G] */

/* One packed matrix. group: inputs per scale group (0: none); each scale group starts on a fresh k-group. */
typedef struct {
  const uint8_t *data;
  int64_t bytes;  /* size of data; must be what mote_packed_bytes says */
  int64_t rows, cols, group;
  int32_t format;
} mote_matrix;

MOTE_API int mote_abi(void);
MOTE_API const char *mote_version(void);
MOTE_API const char *mote_last_error(void);

/* Name of the kernels in use: the best that this CPU runs, or the one that the environment variable MOTE_ISA names
 * (scalar, avx2, avx512vnni). NULL, with an error, when MOTE_ISA names none that runs here. */
MOTE_API const char *mote_isa(void);
/* Space-separated names of those that run here, best first. */
MOTE_API const char *mote_isas(void);
/* Chooses the kernels of the whole process from now on; NULL or "" goes back to the choice at start. */
MOTE_API int mote_select_isa(const char *name);

/* Bytes of a packed matrix, or -1 with an error. */
MOTE_API int64_t mote_packed_bytes(int32_t format, int64_t rows, int64_t cols, int64_t group);
/* q int8 [N, K] of -1, 0, 1 -> out, exactly out_bytes = mote_packed_bytes(...). MOTE_BAD_VALUE on another value. */
MOTE_API int mote_pack(int32_t format, int64_t rows, int64_t cols, int64_t group, const int8_t *q, int64_t q_stride,
                       uint8_t *out, int64_t out_bytes);
/* The inverse. MOTE_BAD_VALUE on a byte that no packing writes (2-bit digit 3, base-3 byte above 242). */
MOTE_API int mote_unpack(const mote_matrix *w, int8_t *q, int64_t q_stride);

/* x fp32 [T, K] -> x_q int8 [T, K], s fp32 [T]: a = max(max|x|, 1e-5), x_q = clip(round(x * (127 / a)), -128, 127) to
 * nearest even, s = a / 127, all in fp32. A NaN or Inf makes its token's s NaN or Inf, so that it is never hidden. */
MOTE_API int mote_quantize_activation(const float *x, int64_t tokens, int64_t cols, int64_t x_stride, int8_t *x_q,
                                      int64_t x_q_stride, float *s);

/* y int32 [T, N] = x_q [T, K] . W^T, exact. threads: at most that many run (1 or more). The bytes of w are not
 * checked for legal digits here: illegal ones give wrong numbers, never a wild access. */
MOTE_API int mote_ternary_matmul_i32(const mote_matrix *w, const int8_t *x_q, int64_t tokens, int64_t x_stride,
                                     int32_t *y, int64_t y_stride, int32_t threads);

/* y fp32 [T, N]. With acc the exact integers, in fp32, each operation rounded once and none fused:
 *   MOTE_TENSOR, MOTE_ROW:  y = float(acc) * (s[t] * scale[n])
 *   MOTE_GROUP:             y = 0; for g in order: y = y + float(acc_g) * scale[n, g];  then y = y * s[t]
 * scales: number of floats at scale (1, N or N * G). */
MOTE_API int mote_ternary_linear_f32(const mote_matrix *w, const float *scale, int64_t scales, int32_t granularity,
                                     const int8_t *x_q, int64_t tokens, int64_t x_stride, const float *s, float *y,
                                     int64_t y_stride, int32_t threads);

#if defined(__cplusplus)
}
#endif
#endif
