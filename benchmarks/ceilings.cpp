// What kernels are measured against: bytes a second read from RAM by a plain loop, and 8-bit multiply-adds a second in
// registers.
#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <thread>
#include <vector>

namespace {

// Sums 64-bit words, so that the compiler must load every byte; eight independent sums hide the latency. The memory is
// read in `streams` places at once (8, or a divisor of it), asking for a line in four of the next page or (ahead false)
// leaving all to the processor: what its prefetchers like best depends on the CPU, and on its neighbours.
template <bool ahead>
uint64_t read_words(const uint8_t *data, int64_t bytes, int32_t streams) {
  __m256i sum[8];
  for (auto &s : sum) s = _mm256_setzero_si256();
  const int64_t part = bytes / streams / 256 * 256, run = 256 / streams;  // bytes of a stream, and of it at a time
  const int32_t each = 8 / streams;
  for (int64_t i = 0; i < part; i += run) {
    if (ahead)
      for (int s = 0; s < streams; ++s)
        if (i % 256 == 0) _mm_prefetch(reinterpret_cast<const char *>(data + s * part + i) + 4096, _MM_HINT_T1);
    for (int j = 0; j < 8; ++j)
      sum[j] = _mm256_add_epi64(
          sum[j], _mm256_loadu_si256(reinterpret_cast<const __m256i *>(data + j / each * part + i + j % each * 32)));
  }
  alignas(32) uint64_t words[4];
  uint64_t total = 0;
  for (auto &s : sum) {
    _mm256_store_si256(reinterpret_cast<__m256i *>(words), s);
    total += words[0] + words[1] + words[2] + words[3];
  }
  return total;
}

// Multiply-adds of one step, and a step whose operands the compiler can neither move nor fold.
#if defined(__AVX512VNNI__)
constexpr int64_t kPerStep = 64;
using Wide = __m512i;
inline Wide zero() { return _mm512_setzero_si512(); }
inline Wide step(Wide acc, Wide w, Wide x) { return _mm512_dpbusd_epi32(acc, w, x); }
const char *const kName = "vpdpbusd, 512 bits";
#elif defined(__AVXVNNI__)
constexpr int64_t kPerStep = 32;
using Wide = __m256i;
inline Wide zero() { return _mm256_setzero_si256(); }
inline Wide step(Wide acc, Wide w, Wide x) { return _mm256_dpbusd_avx_epi32(acc, w, x); }
const char *const kName = "vpdpbusd, 256 bits";
#else
// Without a dot product of 8-bit numbers: pairs are multiplied and added into 16 bits, and sums kept there, which is
// as fast as AVX2 can be as long as nothing overflows.
constexpr int64_t kPerStep = 32;
using Wide = __m256i;
inline Wide zero() { return _mm256_setzero_si256(); }
inline Wide step(Wide acc, Wide w, Wide x) { return _mm256_add_epi16(acc, _mm256_maddubs_epi16(w, x)); }
const char *const kName = "vpmaddubsw + vpaddw, 256 bits";
#endif

constexpr int kChains = 12;  // hide the latency (two ports, five cycles), and leave registers for the operands

// The operand is opaque before each step, or the compiler would multiply once for all sums.
inline void opaque_step(Wide &acc, Wide &w, Wide x) {
  asm volatile("" : "+x"(w));
  acc = step(acc, w, x);
}

void dot(int64_t steps, int32_t *sink) {
  // Sums by name: GCC keeps an array of them on the stack.
  Wide w = zero(), x = zero(), a = zero(), b = zero(), c = zero(), d = zero(), e = zero(), f = zero(), g = zero(),
       h = zero(), i = zero(), j = zero(), k = zero(), l = zero();
  asm volatile("" : "+x"(x));
  for (int64_t n = 0; n < steps; ++n) {
    opaque_step(a, w, x), opaque_step(b, w, x), opaque_step(c, w, x), opaque_step(d, w, x);
    opaque_step(e, w, x), opaque_step(f, w, x), opaque_step(g, w, x), opaque_step(h, w, x);
    opaque_step(i, w, x), opaque_step(j, w, x), opaque_step(k, w, x), opaque_step(l, w, x);
  }
  for (const Wide &sum : {a, b, c, d, e, f, g, h, i, j, k, l}) {
    std::memcpy(sink, &sum, sizeof sum);
    asm volatile("" : : "r"(sink) : "memory");
  }
}

}  // namespace

extern "C" {

uint64_t ceiling_read(const uint8_t *data, int64_t bytes, int32_t threads, int32_t streams, int32_t ahead) {
  const auto read = ahead ? read_words<true> : read_words<false>;
  if (threads <= 1) return read(data, bytes, streams);
  std::vector<std::thread> pool;
  std::vector<uint64_t> sums(threads);
  const int64_t part = bytes / threads / 256 * 256;
  for (int t = 0; t < threads; ++t) pool.emplace_back([=, &sums] { sums[t] = read(data + t * part, part, streams); });
  uint64_t total = 0;
  for (int t = 0; t < threads; ++t) pool[t].join(), total += sums[t];
  return total;
}

const char *ceiling_dot_name() { return kName; }

// Multiply-adds done by all threads. sink: 64 numbers a thread.
int64_t ceiling_dot(int64_t steps, int32_t threads, int32_t *sink) {
  std::vector<std::thread> pool;
  for (int t = 1; t < threads; ++t) pool.emplace_back(dot, steps, sink + 64 * t);
  dot(steps, sink);
  for (auto &thread : pool) thread.join();
  return steps * kPerStep * kChains * threads;
}
}
