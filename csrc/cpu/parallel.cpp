#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#define TAM_HAS_FORK 1
#endif

#include "fp_environment.h"

namespace tam::cpu {
namespace {

constexpr int kMaxWorkers = 255;
constexpr int kPausesBeforeSleep = 1000;  // some 10 to 40 us

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

struct Job {
    const std::function<void(std::int64_t)>& task;
    const std::int64_t tasks;
    const std::int64_t block;     // tasks taken at a time
    int wanted;                   // workers that may still join; guarded by the pool's mutex
    std::atomic<int> running{0};  // workers inside; changed under the pool's mutex only
    std::condition_variable left;
    std::atomic<std::int64_t> next{0};
    std::mutex failure_mutex;
    std::exception_ptr failure;

    Job(const std::function<void(std::int64_t)>& task_, std::int64_t tasks_, int wanted_)
        : task(task_),
          tasks(tasks_),
          block(std::clamp<std::int64_t>(tasks_ / (32 * (wanted_ + 1)), 1, 16)),
          wanted(wanted_) {}

    void work() noexcept {
        const DefaultFpEnvironment environment;
        try {
            for (;;) {
                const std::int64_t first = next.fetch_add(block, std::memory_order_relaxed);
                const std::int64_t last = std::min(first + block, tasks);
                if (first >= tasks) {
                    return;
                }
                for (std::int64_t index = first; index < last; ++index) {
                    task(index);
                }
            }
        } catch (...) {
            const std::lock_guard<std::mutex> lock(failure_mutex);
            if (!failure) {
                failure = std::current_exception();
            }
            next.store(tasks, std::memory_order_relaxed);
        }
    }
};

// Workers sleep on a condition variable between jobs. The pool is never destroyed: at exit its threads may be asleep in it.
class Pool {
  public:
    void run(Job& job) {
        int wake = 0;
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            grow(job.wanted);
            if (workers_ > 0) {
                jobs_.push_back(&job);
                wake = job.wanted;
            }
        }
        for (int i = 0; i < wake; ++i) {
            arrived_.notify_one();
        }
        job.work();
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            jobs_.erase(std::remove(jobs_.begin(), jobs_.end(), &job), jobs_.end());
        }
        // What the workers still have in hand is short: to sleep until then and be woken may take longer.
        for (int i = 0; i < kPausesBeforeSleep && job.running.load(std::memory_order_relaxed) != 0; ++i) {
            pause();
        }
        std::unique_lock<std::mutex> lock(mutex_);
        job.left.wait(lock, [&job] { return job.running == 0; });
    }

    std::mutex& mutex() { return mutex_; }

  private:
    void grow(int wanted) {
        while (workers_ < std::min(wanted, kMaxWorkers)) {
            try {
                std::thread(&Pool::serve, this).detach();
            } catch (const std::system_error&) {
                return;  // no more threads to be had: fewer will do
            }
            ++workers_;
        }
    }

    void serve() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            arrived_.wait(lock, [this] { return !jobs_.empty(); });
            Job& job = *jobs_.front();
            ++job.running;
            if (--job.wanted == 0) {
                jobs_.pop_front();
            }
            lock.unlock();
            job.work();
            lock.lock();
            if (--job.running == 0) {
                job.left.notify_one();  // under the mutex: the job lives only until its owner sees `running` at 0
            }
        }
    }

    std::mutex mutex_;
    std::condition_variable arrived_;
    std::deque<Job*> jobs_;
    int workers_ = 0;
};

Pool* g_pool = nullptr;

#ifdef TAM_HAS_FORK
// A child has none of the parent's workers: it leaves their pool behind and starts one of its own when it needs it.
void before_fork() {
    g_pool->mutex().lock();
}
void after_fork_in_parent() {
    g_pool->mutex().unlock();
}
void after_fork_in_child() {
    g_pool = new Pool;
}
#endif

Pool& pool() {
    static const bool created = [] {
        g_pool = new Pool;
#ifdef TAM_HAS_FORK
        pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
#endif
        return true;
    }();
    static_cast<void>(created);
    return *g_pool;
}

}  // namespace

void parallel_for(std::int64_t tasks, int threads, const std::function<void(std::int64_t)>& task) {
    const std::int64_t helpers = std::min<std::int64_t>(threads, tasks) - 1;
    Job job(task, tasks, static_cast<int>(std::clamp<std::int64_t>(helpers, 0, kMaxWorkers)));
    if (job.wanted > 0) {
        pool().run(job);
    } else {
        job.work();
    }
    if (job.failure) {
        std::rethrow_exception(job.failure);
    }
}

int worthwhile_threads(double nanoseconds, int threads) {
    constexpr double kNanosecondsPerThread = 20e3;  // waking a sleeping worker costs 5 to 10 us
    const double share = nanoseconds / kNanosecondsPerThread;
    return share >= threads ? std::max(threads, 1) : std::max(static_cast<int>(share), 1);
}

}  // namespace tam::cpu
