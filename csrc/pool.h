// A bounded pool of threads that lives as long as the process.
#pragma once
#include <cstdint>

namespace mote {
// Calls work(context, i) for each i in [0, tasks), each exactly once, on the caller and at most threads - 1 others.
// When another caller holds the pool, or threads cannot be had, the caller does all of it alone: which thread runs a
// task never changes a number. work must not throw.
void parallel_for(int32_t threads, int64_t tasks, void (*work)(void *context, int64_t i), void *context);
}  // namespace mote
