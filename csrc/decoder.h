// A decoder whose matrices have been checked (csrc/mote.h: mote_decoder).
#pragma once
#include <vector>

#include "ffn.h"

namespace mote {

struct Layer {
  Linear q, k, v, o;
  Ffn ffn;
};

struct OpenDecoder {
  std::vector<Layer> layers;
  Linear head;
  int64_t top_k = 0;  // the largest of all layers'
};

// Sizes alone, without looking into the layers.
int check_decoder(const mote_decoder &decoder);
// All of it; MOTE_OK fills *opened.
int open_decoder(const mote_decoder &decoder, OpenDecoder *opened);

// Bytes of the keys, or the values, of one head in one block of the cache.
inline int64_t head_bytes(const mote_decoder &d) {
  return d.head_dim * MOTE_KV_TOKENS * (d.kv_format == MOTE_BF16 ? 2 : 4);
}
}  // namespace mote
