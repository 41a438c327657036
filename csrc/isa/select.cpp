// Chooses the kernels once, at the first use: the best that the CPU runs, or what MOTE_ISA names.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>

#include "isa/isa.h"
#include "status.h"

namespace mote {
namespace {

const Isa *const kBestFirst[] = {
#if defined(MOTE_X86)
    &kAvx512Vnni, &kAvxVnni, &kAvx512Vl, &kAvx2,
#endif
#if defined(MOTE_ARM)
    &kNeon,
#endif
    &kScalar,
};

std::atomic<const Isa *> chosen{nullptr};

const std::string &usable_names() {
  static const std::string names = [] {
    std::string all;
    for (const Isa *isa : kBestFirst)
      if (isa->usable()) all += (all.empty() ? "" : " ") + std::string(isa->name);
    return all;
  }();
  return names;
}

const Isa *find(const char *name, const char *asked_by) {
  for (const Isa *isa : kBestFirst)
    if ((!name || !*name || std::strcmp(isa->name, name) == 0) && isa->usable()) return isa;
  fail(MOTE_UNSUPPORTED, "%s=%s names no kernels that run on this CPU; use one of: %s", asked_by, name,
       usable_names().c_str());
  return nullptr;
}
}  // namespace

const Isa *chosen_isa() {
  const Isa *isa = chosen.load(std::memory_order_acquire);
  if (!isa && (isa = find(std::getenv("MOTE_ISA"), "MOTE_ISA"))) chosen.store(isa, std::memory_order_release);
  return isa;
}
}  // namespace mote

extern "C" {
const char *mote_isa(void) {
  const mote::Isa *isa = mote::chosen_isa();
  return isa ? isa->name : nullptr;
}

const char *mote_isas(void) { return mote::usable_names().c_str(); }

int mote_select_isa(const char *name) {
  if (!name || !*name) {
    mote::chosen.store(nullptr, std::memory_order_release);
    return mote::chosen_isa() ? MOTE_OK : MOTE_UNSUPPORTED;
  }
  const mote::Isa *isa = mote::find(name, "isa");
  if (!isa) return MOTE_UNSUPPORTED;
  mote::chosen.store(isa, std::memory_order_release);
  return MOTE_OK;
}
}
