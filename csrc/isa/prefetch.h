// Asking for the weights that come next, for the files of x86 ISAs; hence static.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "format.h"

namespace mote {

// Both are to be called for each k-group, 256 bytes, of a stream of weights. Which of them a processor wants is a matter
// of its own prefetching, not of its instructions, and the wrong one costs up to half of the bandwidth: a file of
// csrc/isa uses what suits the processors that choose it (studies/LOG.md, 2026-11-29 and 2026-11-30).

// One line in four of the next page. A Zen 4 follows a stream by itself, but only to the end of a page; this starts it on
// the next one. Asking for every line costs it up to a third.
static inline void prefetch_page_ahead(const uint8_t *p) {
  constexpr int64_t kPage = 4096;
  _mm_prefetch(reinterpret_cast<const char *>(p) + kPage, _MM_HINT_T1);
}

// Every line, for a Zen 3: asking for one in four halves its bandwidth, asking for none costs it a quarter.
static inline void prefetch_lines_ahead(const uint8_t *p) {
  constexpr int64_t kAhead = 2048;
  for (int64_t line = 0; line < kGroupBytes; line += 64)
    _mm_prefetch(reinterpret_cast<const char *>(p) + kAhead + line, _MM_HINT_T0);
}
}  // namespace mote
