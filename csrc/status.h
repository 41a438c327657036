// One line per failure, kept per thread, behind the integer statuses of mote.h.
#pragma once
#include "mote.h"

namespace mote {
// Records the printf-formatted message for mote_last_error and returns status.
__attribute__((format(printf, 2, 3))) int fail(int status, const char *format, ...);
}  // namespace mote
