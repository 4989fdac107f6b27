#include "scratch.h"

#include <cstdlib>
#include <new>

namespace tam::cpu {
namespace {

constexpr std::size_t kAlignment = 64;

struct Slot {
    void* memory = nullptr;
    std::size_t capacity = 0;
    ~Slot() { std::free(memory); }
};

}  // namespace

void* scratch(ScratchSlot slot, std::size_t bytes) {
    thread_local Slot slots[static_cast<int>(ScratchSlot::count)];
    Slot& mine = slots[static_cast<int>(slot)];
    if (mine.capacity < bytes) {
        const std::size_t capacity = (bytes + bytes / 4 + kAlignment - 1) / kAlignment * kAlignment;
        std::free(mine.memory);
        mine.capacity = 0;
        mine.memory = std::aligned_alloc(kAlignment, capacity);
        if (mine.memory == nullptr) {
            throw std::bad_alloc();
        }
        mine.capacity = capacity;
    }
    return mine.memory;
}

}  // namespace tam::cpu
