#pragma once

#include <cstdint>
#include <functional>

namespace tam::cpu {

// Runs task(0) .. task(tasks - 1), each once, on the calling thread and at most threads - 1 pool workers, every one in the
// default floating-point environment; returns when all are done. The first exception is rethrown here. Tasks must not
// depend on which thread runs them or in which order. May be called from several threads at once; usable after fork.
void parallel_for(std::int64_t tasks, int threads, const std::function<void(std::int64_t)>& task);

// How many threads a job of about this many nanoseconds (on one thread) deserves, given that `threads` were offered.
int worthwhile_threads(double nanoseconds, int threads);

}  // namespace tam::cpu
