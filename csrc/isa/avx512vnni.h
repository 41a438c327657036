// What the AVX512-VNNI files share. Include it from files compiled for AVX512 only.
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "isa/isa.h"
#include "isa/prefetch.h"

namespace mote::avx512vnni {

using V = __m512i;

static inline V load(const void *p) { return _mm512_loadu_si512(p); }
static inline void store(void *p, V v) { _mm512_storeu_si512(p, v); }
static inline V broadcast(const int8_t *x) {
  int32_t quad;
  std::memcpy(&quad, x, sizeof quad);
  return _mm512_set1_epi32(quad);
}
static inline V bytes_of(int value) { return _mm512_set1_epi8(static_cast<char>(value)); }
// GCC would keep running sums in memory inside the loop; what it may not look into stays in its register.
#if defined(MOTE_EMULATE_AVX512)
static inline void pin(V &) {}  // emulated, it is in no register
#else
static inline void pin(V &sum) { asm("" : "+v"(sum)); }
#endif

// Fetches the weights of the next tile into L2, a part with every multiplication of this one.
class NextTile {
 public:
  NextTile(const uint8_t *begin, int64_t bytes) : at_(begin), end_(begin + bytes) {}
  void fetch_part() {
    for (const uint8_t *end = std::min(at_ + kPart, end_); at_ < end; at_ += 64)
      _mm_prefetch(reinterpret_cast<const char *>(at_), _MM_HINT_T1);
  }

 private:
  static constexpr int64_t kPart = 768;
  const uint8_t *at_, *end_;
};

void dot_scaled(const ScaledStrip &w, const GroupedInput &x, int64_t tokens, float *y_TR);
}  // namespace mote::avx512vnni
