#include "pool.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

namespace mote {
namespace {

constexpr int32_t kMaxThreads = 256;
// A forward pass is hundreds of parallel regions a few microseconds apart, and waking a sleeping thread costs as much as
// a small region: a thread looks this many times for the next one (some 50 us) before it sleeps.
constexpr int kLooks = 1500;

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Rounding and the treatment of denormals belong to a thread: a helper takes its caller's, so that bits do not depend on
// who runs a task (torch.set_flush_denormal changes them).
#if defined(__x86_64__) || defined(__i386__)
inline uint64_t float_mode() { return __builtin_ia32_stmxcsr(); }
inline void set_float_mode(uint64_t mode) { __builtin_ia32_ldmxcsr(static_cast<unsigned>(mode)); }
#elif defined(__aarch64__)
inline uint64_t float_mode() {
  uint64_t mode;
  asm volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
}
inline void set_float_mode(uint64_t mode) { asm volatile("msr fpcr, %0" : : "r"(mode)); }
#else
inline uint64_t float_mode() { return 0; }
inline void set_float_mode(uint64_t) {}
#endif

// Looks at `value` until it passes `test`, a bounded number of times.
template <class Test>
void look(const std::atomic<int32_t> &value, Test test) {
  for (int i = 0; i < kLooks && !test(value.load(std::memory_order_acquire)); ++i) pause();
}

struct Job {
  void (*work)(void *, int64_t);
  void *context;
  int64_t tasks;
  uint64_t mode;  // of the caller
  std::atomic<int64_t> next;

  void run() {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) work(context, i);
  }
};

class Pool {
 public:
  std::atomic_flag busy = ATOMIC_FLAG_INIT;

  void run(Job &job, int32_t helpers) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      grow(helpers);
      job_ = &job;
      wanted_ = std::min<int32_t>(helpers, static_cast<int32_t>(threads_.size()));
    }
    wake_.notify_all();
    job.run();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      wanted_ = 0;  // no thread that comes from here on joins in
    }
    look(active_, [](int32_t active) { return active == 0; });
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return active_ == 0; });
    job_ = nullptr;
  }

 private:
  void grow(int32_t helpers) {
    try {
      while (static_cast<int32_t>(threads_.size()) < helpers) threads_.emplace_back([this] { serve(); });
    } catch (const std::exception &) {
      // The system has no more threads, or memory for them, to give: go on with those there are.
    }
  }

  void serve() {
    for (;;) {
      look(wanted_, [](int32_t wanted) { return wanted > 0; });
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [this] { return wanted_ > 0; });
      --wanted_;
      ++active_;
      Job *job = job_;
      lock.unlock();
      set_float_mode(job->mode);
      job->run();
      lock.lock();
      if (--active_ == 0) done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> threads_;
  Job *job_ = nullptr;
  std::atomic<int32_t> wanted_{0}, active_{0};  // written under the mutex
};

// Never destroyed: its threads wait until the process ends. A forked child has none of them, so it starts a new pool.
// Without memory for one there is none, and callers work alone.
Pool *pool = nullptr;

void start_pool() { pool = new (std::nothrow) Pool; }
std::once_flag once;
}  // namespace

void parallel_for(int32_t threads, int64_t tasks, void (*work)(void *, int64_t), void *context) {
  Job job{work, context, tasks, float_mode(), {0}};
  const auto helpers = static_cast<int32_t>(std::min<int64_t>(std::min(threads, kMaxThreads), tasks) - 1);
  if (helpers > 0) {
    std::call_once(once, [] {
      start_pool();
      pthread_atfork(nullptr, nullptr, start_pool);
    });
    if (pool && !pool->busy.test_and_set(std::memory_order_acquire)) {
      pool->run(job, helpers);
      pool->busy.clear(std::memory_order_release);
      return;
    }
  }
  job.run();
}
}  // namespace mote
