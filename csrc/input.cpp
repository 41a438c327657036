// The integer forms of activations: quantised once per token (ternary), or per token and scale group (integers).
//
// Rows of a form are followed by zeros as far as any k-group reaches, so that kernels read whole k-groups in place.
// Grouped ternary matrices read the integers of the token form with sums of their own; where a scale group does not
// fill its k-groups they get a copy in which it does.
#include "linear.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "pool.h"
#include "status.h"

namespace mote {
namespace {

constexpr int64_t kTokensPerTask = 4;

struct Key {
  int64_t group, per_group;
};
Key key_of(const Linear &linear) {
  const mote_matrix &w = *linear.w;
  if (is_scaled(w.format)) return {w.group, 0};
  return {w.group, w.group ? linear.m.per_group : 0};
}

int32_t sum_of(const int8_t *x, int64_t n) {
  int32_t sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += x[i];
  return sum;
}
}  // namespace

Form *Input::find(int64_t group, int64_t per_group) const {
  Form *form = forms_.get();
  while (form && (form->group != group || form->per_group != per_group)) form = form->next.get();
  return form;
}

const Form *Input::form(const Linear &linear) const {
  if (is_float(linear.w->format)) return nullptr;
  const Key key = key_of(linear);
  return find(key.group, key.per_group);
}

int Input::prepare(const Isa &isa, const Linear &linear, int32_t threads) {
  if (is_float(linear.w->format)) return MOTE_OK;
  const Key key = key_of(linear);
  if (find(key.group, key.per_group)) return MOTE_OK;
  if (key.per_group && !find(0, 0))
    if (int status = make(isa, 0, 0, threads)) return status;
  return make(isa, key.group, key.per_group, threads);
}

int Input::make(const Isa &isa, int64_t group, int64_t per_group, int32_t threads) {
  std::unique_ptr<Form> form(new (std::nothrow) Form);
  if (!form) return fail(MOTE_NO_MEMORY, "no memory for activations");
  const Form *token = per_group ? find(0, 0) : nullptr;
  const int64_t groups = group ? (cols_ + group - 1) / group : 1;
  const bool shared = token && group % per_group == 0;  // reads the token form's integers
  form->group = group;
  form->per_group = per_group;
  // The longest k-group has 20 inputs; whole vectors keep rows apart alike.
  form->stride = shared ? token->stride : token ? groups * round_up(group, per_group) : round_up(cols_ + 20, 32);
  const auto numbers = static_cast<size_t>(std::max<int64_t>(tokens_ * groups, 1));
  form->own_sum.reset(new (std::nothrow) int32_t[numbers]);
  if (!token) form->own_s.reset(new (std::nothrow) float[numbers]);
  if (!shared) form->own_x.reset(new (std::nothrow) int8_t[static_cast<size_t>(std::max<int64_t>(tokens_ * form->stride, 1))]);
  if (!form->own_sum || (!token && !form->own_s) || (!shared && !form->own_x))
    return fail(MOTE_NO_MEMORY, "no memory for the integers of %lld tokens", static_cast<long long>(tokens_));
  form->x = shared ? token->x : form->own_x.get();
  form->s = token ? token->s : form->own_s.get();
  form->sum = form->own_sum.get();

  struct Fill {
    const Input *input;
    const Isa *isa;
    Form *form;
    const Form *token;
  } fill{this, &isa, form.get(), token};
  const auto helpers = static_cast<int32_t>(std::min<int64_t>(threads, 1 + ((tokens_ * cols_) >> 16)));
  parallel_for(helpers, ceil_div(tokens_, kTokensPerTask), [](void *self, int64_t i) {
    const Fill &f = *static_cast<Fill *>(self);
    const int64_t end = std::min(f.input->tokens_, (i + 1) * kTokensPerTask);
    for (int64_t t = i * kTokensPerTask; t < end; ++t) f.input->fill(*f.isa, f.form, f.token, t);
  }, &fill);
  form->next = std::move(forms_);
  forms_ = std::move(form);
  return MOTE_OK;
}

void Input::fill(const Isa &isa, Form *form, const Form *token, int64_t t) const {
  const int64_t width = form->group ? form->group : cols_, groups = ceil_div(cols_, width);
  int32_t *sum = form->own_sum.get() + t * groups;
  int8_t *out = form->own_x ? form->own_x.get() + t * form->stride : nullptr;
  const int64_t stored = token && out ? round_up(width, form->per_group) : width;
  if (out) std::memset(out + (token ? 0 : cols_), 0, static_cast<size_t>(form->stride - (token ? 0 : cols_)));
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t k0 = g * width, n = std::min(width, cols_ - k0);
    if (token) {
      const int8_t *from = token->x + t * token->stride + k0;
      sum[g] = sum_of(from, n);
      if (out) std::memcpy(out + g * stored, from, static_cast<size_t>(n));
    } else if (x_q_) {
      std::memcpy(out + k0, x_q_ + t * stride_ + k0, static_cast<size_t>(n));
      sum[g] = sum_of(out + k0, n);
      form->own_s[static_cast<size_t>(t * groups + g)] = 1.0f;
    } else {
      isa.floats->quantize(x_ + t * stride_ + k0, n, out + k0, form->own_s.get() + t * groups + g, sum + g);
    }
  }
}
}  // namespace mote
