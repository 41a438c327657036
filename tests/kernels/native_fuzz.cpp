// Calls the C interface with headers, sizes and bytes damaged at random, under ASan and UBSan (`make fuzz`).
//
// Each round draws a legal matrix, damages some of its fields, and then allocates every buffer exactly as large as the
// damaged header claims; a claim too large to allocate becomes a wild pointer, and so does whatever the library may not
// touch before it has refused. So each call must be refused, or stay within what it was given. Bytes of weights and
// scales are random: illegal ones may give wrong numbers, but never a wild access.
//   native_fuzz [seconds] [seed]
#include <algorithm>
#include <chrono>
#include <cstring>
#include <random>
#include <vector>

#include "native_driver.h"

namespace {

constexpr int64_t kMost = 1 << 18;  // bytes of a buffer

std::mt19937_64 rng;

int64_t below(int64_t n) { return static_cast<int64_t>(rng() % static_cast<uint64_t>(n)); }
bool once_in(int64_t n) { return below(n) == 0; }

// Numbers at which sizes break.
int64_t odd_number() {
  static const int64_t edges[] = {INT64_MIN, INT64_MIN + 1, -64, -1, 0, 1, 63, 65, 1 << 16, int64_t{1} << 22,
                                  int64_t{1} << 31, int64_t{1} << 32, int64_t{1} << 61, INT64_MAX - 63, INT64_MAX};
  return edges[below(sizeof edges / sizeof *edges)];
}
int64_t damaged(int64_t value) {
  switch (below(4)) {
    case 0: return value + below(3) - 1;
    case 1: return value ^ (int64_t{1} << below(63));
    case 2: return static_cast<int64_t>(static_cast<uint64_t>(value) * static_cast<uint64_t>(below(5)));
    default: return odd_number();
  }
}

struct Call {
  mote_matrix w;
  int64_t tokens, x_stride, y_stride;
  int32_t threads;
};

Call legal() {
  Call c{};
  c.w.format = static_cast<int32_t>(1 + below(6));
  c.w.rows = 1 + below(140);
  c.w.cols = 1 + below(200);
  const bool scaled = c.w.format == MOTE_INT4 || c.w.format == MOTE_INT8, dense = c.w.format >= MOTE_BF16;
  c.w.group = dense || (!scaled && once_in(2)) ? 0 : 16 * (1 + below(5));
  c.w.granularity = c.w.group ? MOTE_GROUP : static_cast<int32_t>(below(2));
  c.w.bytes = mote_packed_bytes(c.w.format, c.w.rows, c.w.cols, c.w.group);
  const int64_t groups = c.w.group ? (c.w.cols + c.w.group - 1) / c.w.group : 1;
  c.w.scales = dense ? 0 : scaled ? (c.w.rows + 63) / 64 * 64 * groups
             : c.w.granularity == MOTE_TENSOR ? 1 : c.w.rows * groups;
  c.tokens = below(8);
  c.x_stride = c.w.cols + below(3);
  c.y_stride = c.w.rows + below(3);
  c.threads = static_cast<int32_t>(1 + below(3));
  return c;
}

// The library cannot know that a caller's buffers are shorter than legal sizes say: keep what is short, or more than
// any memory holds and therefore to be refused.
int64_t short_or_absurd(int64_t value, int64_t most) {
  return value > most && value < int64_t{1} << 60 ? value % most : value;
}

void damage(Call *c) {
  for (int64_t n = below(3); n > 0; --n) switch (below(9)) {
      case 0: c->w.rows = damaged(c->w.rows); break;
      case 1: c->w.cols = damaged(c->w.cols); break;
      case 2: c->w.group = damaged(c->w.group); break;
      case 3: c->w.bytes = damaged(c->w.bytes); break;
      case 4: c->w.scales = damaged(c->w.scales); break;
      case 5: c->w.format = static_cast<int32_t>(damaged(c->w.format)); break;
      case 6: c->w.granularity = static_cast<int32_t>(damaged(c->w.granularity)); break;
      case 7: c->tokens = damaged(c->tokens); break;
      default: (once_in(2) ? c->x_stride : c->y_stride) = damaged(c->x_stride);
    }
  c->tokens = short_or_absurd(c->tokens, 64);
  c->x_stride = short_or_absurd(c->x_stride, kMost / 256);
  c->y_stride = short_or_absurd(c->y_stride, kMost / 256);
}

// Heap blocks of exactly so many random bytes; a wild pointer where that cannot be.
class Buffers {
 public:
  template <class T>
  T *get(int64_t count) {
    if (count < 0 || count > kMost / static_cast<int64_t>(sizeof(T))) {
      wild_ = true;
      return reinterpret_cast<T *>(64);
    }
    if (once_in(64)) return nullptr;
    blocks_.push_back(block<char>(count * static_cast<int64_t>(sizeof(T))));
    char *bytes = blocks_.back().get();
    for (size_t i = 0; i < static_cast<size_t>(count) * sizeof(T); ++i) bytes[i] = static_cast<char>(rng());
    return reinterpret_cast<T *>(bytes);
  }
  bool wild() const { return wild_; }

 private:
  std::vector<std::unique_ptr<char[]>> blocks_;
  bool wild_ = false;
};

// Elements of `n` rows of `width` at a stride; -1 where that is no number of bytes that could be had.
int64_t extent(int64_t n, int64_t width, int64_t stride) {
  if (n <= 0) return 0;
  if (n == 1) return width;
  if (width < 0 || width > kMost || n > kMost || stride < 0 || stride > kMost) return -1;
  return (n - 1) * stride + width;
}

int64_t accepted = 0, refused = 0;

void count(int status, const Buffers &buffers, const char *what) {
  if (status == MOTE_OK && buffers.wild()) stop(std::string(what) + " accepted sizes beyond its buffers");
  status == MOTE_OK ? ++accepted : ++refused;
}

void products(Call c) {
  Buffers b;
  const bool half = c.w.format == MOTE_INT4 || c.w.format == MOTE_INT8;
  c.w.data = b.get<uint8_t>(c.w.bytes);
  c.w.scale = half ? static_cast<void *>(b.get<uint16_t>(c.w.scales)) : b.get<float>(c.w.scales);
  if (c.w.format >= MOTE_BF16 && c.w.scales == 0) c.w.scale = nullptr;
  if (once_in(3)) c.w.bias = b.get<float>(c.w.rows);
  const auto *x = b.get<float>(extent(c.tokens, c.w.cols, c.x_stride));
  auto *y = b.get<float>(extent(c.tokens, c.w.rows, c.y_stride));
  count(mote_linear_f32(&c.w, x, c.tokens, c.x_stride, y, c.y_stride, c.threads), b, "linear");
  // Integers need no scales: their claims must not be trusted, nor their pointers followed.
  c.w.scale = reinterpret_cast<const void *>(64);
  const auto *x_q = b.get<int8_t>(extent(c.tokens, c.w.cols, c.x_stride));
  auto *y_q = b.get<int32_t>(extent(c.tokens, c.w.rows, c.y_stride));
  if (!b.wild()) count(mote_matmul_i32(&c.w, x_q, c.tokens, c.x_stride, y_q, c.y_stride, c.threads), b, "matmul");
}

void rows(Call c) {
  Buffers b;
  const bool half = c.w.format == MOTE_INT4 || c.w.format == MOTE_INT8;
  c.w.data = b.get<uint8_t>(c.w.bytes);
  c.w.scale = half ? static_cast<void *>(b.get<uint16_t>(c.w.scales)) : b.get<float>(c.w.scales);
  if (c.w.format >= MOTE_BF16 && c.w.scales == 0) c.w.scale = nullptr;
  auto *index = b.get<int64_t>(c.tokens < 0 ? 0 : c.tokens);
  if (index && c.tokens <= kMost / 8)
    for (int64_t i = 0; i < c.tokens; ++i) index[i] = once_in(40) ? odd_number() : below(c.w.rows > 0 ? c.w.rows : 1);
  auto *y = b.get<float>(extent(c.tokens, c.w.cols, c.x_stride));
  count(mote_rows_f32(&c.w, index, c.tokens, y, c.x_stride), b, "rows");
}

void packing(Call c) {
  Buffers b;
  c.w.data = b.get<uint8_t>(c.w.bytes);
  auto *q = b.get<int8_t>(extent(c.w.rows, c.w.cols, c.x_stride));
  count(mote_unpack(&c.w, q, c.x_stride), b, "unpack");
  if (!b.wild() && q)
    for (int64_t i = 0, n = extent(c.w.rows, c.w.cols, c.x_stride); i < n; ++i)
      q[i] = static_cast<int8_t>(once_in(5000) ? static_cast<int64_t>(rng()) : below(3) - 1);
  auto *out = b.get<uint8_t>(c.w.bytes);
  count(mote_pack(c.w.format, c.w.rows, c.w.cols, c.w.group, q, c.x_stride, out, c.w.bytes), b, "pack");
}

void activations(const Call &c) {
  Buffers b;
  const auto *x = b.get<float>(extent(c.tokens, c.w.cols, c.x_stride));
  auto *x_q = b.get<int8_t>(extent(c.tokens, c.w.cols, c.y_stride));
  auto *s = b.get<float>(c.tokens < 0 ? 0 : c.tokens);
  count(mote_quantize_activation(x, c.tokens, c.w.cols, c.x_stride, x_q, c.y_stride, s), b, "quantize_activation");
}
}  // namespace

int main(int argc, char **argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 60;
  const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  std::vector<std::string> isas;
  const std::string names = mote_isas();
  for (size_t from = 0; from < names.size();) {
    const size_t to = std::min(names.find(' ', from), names.size());
    isas.push_back(names.substr(from, to - from));
    from = to + 1;
  }
  int64_t round = 0;
  for (; std::chrono::steady_clock::now() < end; ++round) {
    rng.seed(seed * 1000003 + static_cast<uint64_t>(round));  // a round can be repeated alone
    mote_select_isa(isas[static_cast<size_t>(round) % isas.size()].c_str());
    Call c = legal();
    damage(&c);
    products(c);
    rows(c);
    packing(c);
    activations(c);
  }
  if (accepted < round / 4 || refused < round / 4) stop("the rounds are too much of one kind to mean anything");
  std::printf("%lld rounds from seed %llu: %lld calls accepted, %lld refused\n", static_cast<long long>(round),
              static_cast<unsigned long long>(seed), static_cast<long long>(accepted), static_cast<long long>(refused));
}
