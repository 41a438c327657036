// Asking for the weights that come next, for the files of x86 ISAs; hence static.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace mote {

// One stream of reads leaves a third of the memory's bandwidth unused. So the next 16 KiB are asked for a line from each
// of their four pages at a time, four lines for each k-group of 256 bytes that is read.
static inline void prefetch_pages(const uint8_t *p) {
  constexpr uintptr_t kPage = 4096, kWindow = 4 * kPage;
  const auto at = reinterpret_cast<uintptr_t>(p), inside = at % kWindow;
  const auto *next = reinterpret_cast<const char *>(at - inside + kWindow + inside / 4);
  for (uintptr_t page = 0; page < kWindow; page += kPage) _mm_prefetch(next + page, _MM_HINT_T1);
}
}  // namespace mote
