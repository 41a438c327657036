#include "pool.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace mote {
namespace {

constexpr int32_t kMaxThreads = 256;

struct Job {
  void (*work)(void *, int64_t);
  void *context;
  int64_t tasks;
  std::atomic<int64_t> next{0};

  void run() {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) work(context, i);
  }
};

class Pool {
 public:
  void run(Job &job, int32_t helpers) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      grow(helpers);
      job_ = &job;
      wanted_ = std::min<int32_t>(helpers, static_cast<int32_t>(threads_.size()));
    }
    wake_.notify_all();
    job.run();
    std::unique_lock<std::mutex> lock(mutex_);
    wanted_ = 0;  // no thread that wakes from here on joins in
    done_.wait(lock, [this] { return active_ == 0; });
    job_ = nullptr;
  }

 private:
  void grow(int32_t helpers) {
    try {
      while (static_cast<int32_t>(threads_.size()) < helpers) threads_.emplace_back([this] { serve(); });
    } catch (const std::system_error &) {
      // The system has no more threads to give: go on with those there are.
    }
  }

  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return wanted_ > 0; });
      --wanted_;
      ++active_;
      Job *job = job_;
      lock.unlock();
      job->run();
      lock.lock();
      if (--active_ == 0) done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> threads_;
  Job *job_ = nullptr;
  int32_t wanted_ = 0, active_ = 0;
};

// Never destroyed: its threads wait until the process ends. A forked child has none of them, so it starts a new pool.
Pool *pool = nullptr;
std::atomic_flag *busy = nullptr;

void start_pool() {
  pool = new Pool;
  busy = new std::atomic_flag ATOMIC_FLAG_INIT;
}
std::once_flag once;
}  // namespace

void parallel_for(int32_t threads, int64_t tasks, void (*work)(void *, int64_t), void *context) {
  Job job{work, context, tasks};
  const auto helpers = static_cast<int32_t>(std::min<int64_t>(std::min(threads, kMaxThreads), tasks) - 1);
  if (helpers > 0) {
    std::call_once(once, [] {
      start_pool();
      pthread_atfork(nullptr, nullptr, start_pool);
    });
    if (!busy->test_and_set(std::memory_order_acquire)) {
      pool->run(job, helpers);
      busy->clear(std::memory_order_release);
      return;
    }
  }
  job.run();
}
}  // namespace mote
