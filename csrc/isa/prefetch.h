// Asking for the weights that come next, for the files of x86 ISAs; hence static.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace mote {

// To be called for each k-group, 256 bytes, of a stream of weights. The processor's own prefetching follows such a
// stream well, but ends where a page does: one line in four of the next page starts it there early. More than that
// competes with it; asking for every line costs up to a third of the bandwidth (studies/LOG.md, 2026-11-29).
static inline void prefetch_page_ahead(const uint8_t *p) {
  constexpr int64_t kPage = 4096;
  _mm_prefetch(reinterpret_cast<const char *>(p) + kPage, _MM_HINT_T1);
}
}  // namespace mote
