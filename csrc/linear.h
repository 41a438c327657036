// Linear maps inside the library: many products of checked matrices with shared inputs, run as one parallel region.
#pragma once
#include <cstdint>
#include <memory>

#include "format.h"
#include "isa/isa.h"
#include "mote.h"

namespace mote {

// A matrix whose sizes, scales and pointers have been checked. `w` must outlive it.
struct Linear {
  const mote_matrix *w = nullptr;
  Geometry m{};
};
// MOTE_OK fills *linear. `what` names the matrix in errors ("layer 3: q"); NULL: no name.
int open_linear(const mote_matrix &w, const char *what, Linear *linear);
// Sizes, strides and pointers of activations x [T, K] and outputs y [T, N] of a call.
int check_call(const mote_matrix &w, const void *x, int64_t tokens, int64_t x_stride, const void *y, int64_t y_stride,
               int32_t threads);

// The integers that one family of matrices reads: quantised per token or per token and group, summed per scale group.
struct Form {
  int64_t group = 0;      // inputs of a scale group; 0: none
  int64_t per_group = 0;  // grouped ternary: inputs of a k-group, to which scale groups are padded; otherwise 0
  const int8_t *x = nullptr;       // [T, stride]: enough zeros behind K (and, re-laid, behind each scale group)
  int64_t stride = 0;
  const float *s = nullptr;        // [T], or [T, G] where the scales of x are per group
  const int32_t *sum = nullptr;    // [T, G]; G = 1 without groups
  std::unique_ptr<int8_t[]> own_x;
  std::unique_ptr<float[]> own_s;
  std::unique_ptr<int32_t[]> own_sum;
  std::unique_ptr<Form> next;
};

// Activations x [T, K] and the integer forms of them that linears read, made once and shared. x must outlive it.
class Input {
 public:
  Input(const float *x, int64_t tokens, int64_t cols, int64_t stride)
      : x_(x), tokens_(tokens), cols_(cols), stride_(stride) {}
  // Integers as they are, with scale 1, instead of quantised ones.
  Input(const int8_t *x_q, int64_t tokens, int64_t cols, int64_t stride)
      : x_q_(x_q), tokens_(tokens), cols_(cols), stride_(stride) {}

  // Makes what `linear` reads of x, in parallel over tokens; nothing if it is there already. MOTE_NO_MEMORY.
  int prepare(const Isa &isa, const Linear &linear, int32_t threads);

  const float *x() const { return x_; }
  int64_t stride() const { return stride_; }
  // The integers that a prepared linear reads; nullptr for bf16 and f32, which read x itself.
  const Form *form(const Linear &linear) const;

 private:
  Form *find(int64_t group, int64_t per_group) const;
  int make(const Isa &isa, int64_t group, int64_t per_group, int32_t threads);
  void fill(const Isa &isa, Form *form, const Form *token, int64_t t) const;

  const float *x_ = nullptr;
  const int8_t *x_q_ = nullptr;
  int64_t tokens_, cols_, stride_;
  std::unique_ptr<Form> forms_;
};

// y [tokens, N] at y_stride = rows first .. first + tokens - 1 of the input times the matrix, bias added. With `up`, of
// the same size: y = silu(input times the matrix) * (input times up), without either product in memory.
struct Product {
  const Linear *linear;
  Input *input;
  int64_t first, tokens;
  float *y;
  int64_t y_stride;
  const Linear *up = nullptr;
};
// Prepares the inputs, then runs all products as one parallel region. They write disjoint outputs. MOTE_NO_MEMORY.
int multiply(const Isa &isa, const Product *products, int64_t count, int32_t threads);
}  // namespace mote
