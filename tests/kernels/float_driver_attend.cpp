// Attention of float_driver: values against double precision, bits between ISAs and between cuts of a sequence.
#include "float_driver.h"

namespace driver {
namespace {

// One kv head's whole sequence: queries of all positions and the cache, later positions stored when they are reached.
struct Sequence {
  int64_t positions, heads, head_dim;
  int32_t kv_format;
  Floats q, k, v;
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(head_dim)); }
};

Sequence sequence(int64_t positions, int64_t heads, int64_t head_dim, int32_t kv_format) {
  Sequence s{positions, heads, head_dim, kv_format, numbers(positions * heads * head_dim, 2.0f),
             numbers(positions * head_dim), numbers(positions * head_dim)};
  s.q[0] *= 60;  // one peaked softmax
  return s;
}

// A cut of a sequence: the lengths of its spans, and how many tokens of a span one call does.
struct Cut {
  std::vector<int64_t> spans;
  int64_t call;
};

// Blocks with keys at 2 bytes from the start and values behind them, full of NaN.
struct Cache {
  std::vector<std::vector<uint8_t>> blocks;
  std::vector<void *> pointers;
  int64_t v_offset;
  explicit Cache(const Sequence &s) {
    const int64_t part = MOTE_KV_TOKENS * s.head_dim * (s.kv_format == MOTE_BF16 ? 2 : 4);
    v_offset = 2 + part;
    for (int64_t n = 0; n < s.positions; n += MOTE_KV_TOKENS) blocks.emplace_back(2 + 2 * part, uint8_t{0xff});
    for (auto &block : blocks) pointers.push_back(block.data());
  }
};

Floats run(const Named &isa, const Sequence &s, const Cut &cut) {
  Cache cache(s);
  const int64_t width = s.heads * s.head_dim, q_token = width + 5;
  Floats out(s.q.size(), kNan);
  int64_t start = 0;
  for (int64_t count : cut.spans) {
    Floats q(static_cast<size_t>((count - 1) * q_token + width), kNan), y(q.size(), kNan);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t position = start + i;
      std::memcpy(&q[i * q_token], &s.q[position * width], static_cast<size_t>(width) * sizeof(float));
      auto *block = static_cast<uint8_t *>(cache.pointers[position / MOTE_KV_TOKENS]);
      isa.kernels->store_kv(&s.k[position * s.head_dim], &s.v[position * s.head_dim], s.head_dim,
                            position % MOTE_KV_TOKENS, s.kv_format, block + 2, block + cache.v_offset);
    }
    for (int64_t first = 0; first < count; first += cut.call) {
      const int64_t done = std::min(cut.call, count - first);
      Floats scratch(static_cast<size_t>(isa.kernels->attend_scratch(start + first + done)), kNan);
      isa.kernels->attend({q.data(), y.data(), q_token, s.heads, first, done, start, s.head_dim, cache.pointers.data(),
                           2, cache.v_offset, s.kv_format, s.scale()}, scratch.data());
    }
    for (int64_t i = 0; i < count; ++i)
      std::memcpy(&out[(start + i) * width], &y[i * q_token], static_cast<size_t>(width) * sizeof(float));
    start += count;
  }
  return out;
}

void values(const Sequence &s, const Floats &out, const std::string &what) {
  const auto cached = [&](float a) { return double{s.kv_format == MOTE_BF16 ? nearest_bf16(a) : a}; };
  for (int64_t row = 0; row < s.positions * s.heads; ++row) {
    const int64_t own = row / s.heads;
    std::vector<double> weight(static_cast<size_t>(own + 1));
    double top = -INFINITY, sum = 0;
    for (int64_t p = 0; p <= own; ++p) {
      for (int64_t d = 0; d < s.head_dim; ++d) weight[p] += s.q[row * s.head_dim + d] * cached(s.k[p * s.head_dim + d]);
      weight[p] *= s.scale();
      top = std::max(top, weight[p]);
    }
    for (double &w : weight) w = std::exp(w - top), sum += w;
    for (int64_t d = 0; d < s.head_dim; ++d) {
      double exact = 0;
      for (int64_t p = 0; p <= own; ++p) exact += weight[p] / sum * cached(s.v[p * s.head_dim + d]);
      if (!close(out[row * s.head_dim + d], exact, 2e-5, 1.0))
        check(false, what + " value of row " + std::to_string(row));
    }
  }
  check(true, what);
}
}  // namespace

void attention(const std::vector<Named> &isas) {
  for (int32_t kv_format : {MOTE_BF16, MOTE_F32})
    for (int64_t heads : {1, 3, 7})
      for (int64_t head_dim : {2, 14, 24, 64, 80, 128, 130, 256}) {
        const Sequence s = sequence(77, heads, head_dim, kv_format);
        const Floats whole = run(isas.back(), s, {{77}, 77});
        const auto what = [&](const char *isa) { return at("attend", isa, {kv_format, heads, head_dim}); };
        values(s, whole, what(isas.back().name));
        const std::vector<Cut> cuts = {{{77}, 4}, {{5, 28, 1, 1, 42}, 9}, {{33, 44}, 1}};
        for (const Named &isa : isas)
          for (const Cut &cut : cuts) {
            check(same_bits(run(isa, s, cut), whole), what(isa.name) + ", spans of " + std::to_string(cut.spans[0]) +
                                                          ", calls of " + std::to_string(cut.call));
            if (isa.kernels == &mote::kScalarFloats) break;  // too slow for more
          }
      }
}
}  // namespace driver
