// Bits between ISAs: numbers whose products round, at awkward shapes, on every usable ISA and on the plain kernels.
#include <sstream>

#include "native_weights.h"

namespace {

std::mt19937 rng(23);

std::vector<float> product(const char *isa, const mote_matrix &w, const std::vector<float> &x, int64_t tokens) {
  if (mote_select_isa(isa)) stop(std::string("select ") + isa);
  std::vector<float> y(static_cast<size_t>(tokens * w.rows));
  if (mote_linear_f32(&w, x.data(), tokens, w.cols, y.data(), w.rows, 1)) stop(std::string("linear ") + isa);
  return y;
}

void compare(int32_t format, int64_t rows, int64_t cols, int64_t group, int64_t tokens) {
  const Weights weights = random_weights(rng, format, rows, cols, group, true);
  const std::vector<float> x = normals(rng, tokens * cols, 3.0f);
  const std::vector<float> plain = product("scalar", weights.w, x, tokens);
  std::istringstream names(mote_isas());
  for (std::string isa; names >> isa;) {
    const std::vector<float> y = product(isa.c_str(), weights.w, x, tokens);
    if (std::memcmp(y.data(), plain.data(), plain.size() * sizeof(float)) == 0) continue;
    std::ostringstream what;
    what << isa << " and scalar differ: format " << format << " [" << rows << ", " << cols << "] group " << group
         << " tokens " << tokens;
    stop(what.str());
  }
}
}  // namespace

int64_t compare_isas() {
  int64_t passed = 0;
  for (int32_t format = MOTE_2BIT; format <= MOTE_UINT8; ++format)
    for (int64_t rows : {3, 64, 77})
      for (int64_t cols : {5, 44, 329, 1061})
        for (int64_t tokens : {1, 2, 3, 4, 5, 6, 7, 20})
          for (int64_t group : {0, 32, 64, 328, 1024}) {
            const bool scaled = is_integers(format), ternary = format <= MOTE_BASE3;
            if (group ? !scaled && !(ternary && group == 32) : scaled) continue;
            if (scaled && group % group_step(format) != 0) continue;
            compare(format, rows, cols, group, tokens);
            ++passed;
          }
  return passed;
}
