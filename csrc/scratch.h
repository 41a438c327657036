// Memory that one forward pass reuses from layer to layer, and loops over the pool with a closure.
#pragma once
#include <cinttypes>
#include <cstdint>
#include <memory>
#include <new>

#include "pool.h"
#include "status.h"

namespace mote {

// Grows and never shrinks; what it held is lost when it grows.
template <class T>
class Buffer {
 public:
  int hold(int64_t count) {
    if (count <= size_) return MOTE_OK;
    size_ = 0;
    data_.reset(new (std::nothrow) T[static_cast<size_t>(count)]);
    if (!data_) return fail(MOTE_NO_MEMORY, "no memory for %" PRId64 " numbers of activations", count);
    size_ = count;
    return MOTE_OK;
  }
  T *get() const { return data_.get(); }

 private:
  std::unique_ptr<T[]> data_;
  int64_t size_ = 0;
};

constexpr int64_t kSerialTokens = 8;  // below this, loops over tokens stay on the caller

// work(i) for i in [0, tasks) on the pool. Fewer than `serial` tasks are not worth waking a thread.
template <class Work>
void each(int32_t threads, int64_t tasks, int64_t serial, const Work &work) {
  parallel_for(tasks < serial ? 1 : threads, tasks,
               [](void *context, int64_t i) { (*static_cast<const Work *>(context))(i); },
               const_cast<Work *>(&work));
}
}  // namespace mote
