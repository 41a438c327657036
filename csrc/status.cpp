#include "status.h"

#include <cstdarg>
#include <cstdio>

namespace {
thread_local char last_error[512] = "no error";
}

int mote::fail(int status, const char *format, ...) {
  va_list args;
  va_start(args, format);
  std::vsnprintf(last_error, sizeof last_error, format, args);
  va_end(args);
  return status;
}

extern "C" {
int mote_abi(void) { return MOTE_ABI; }
const char *mote_version(void) { return MOTE_VERSION; }
const char *mote_last_error(void) { return last_error; }
}
