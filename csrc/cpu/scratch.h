#pragma once

#include <cstddef>

namespace tam::cpu {

// A thread's work memory. Each user has a slot of its own, so that operators may be nested.
enum class ScratchSlot { filter, interference, rows, count };

// At least `bytes` bytes, aligned to a cache line and kept for the thread's next use; contents undefined.
void* scratch(ScratchSlot slot, std::size_t bytes);

}  // namespace tam::cpu
