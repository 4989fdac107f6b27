#include "emulation.h"

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define TAM_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define TAM_ADDRESS_SANITIZER 1
#endif
#endif

#ifdef TAM_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace tam::cuda::emulation {
namespace {

constexpr unsigned kLanes = 32;
constexpr unsigned kMostThreads = 1024;
constexpr std::size_t kMostSharedBytes = 227 * 1024;
constexpr std::size_t kMostMeetingBytes = 64;
constexpr std::size_t kStackBytes = 256 * 1024;

thread_local std::string g_error_text;
std::atomic<std::uint64_t> g_seed{0};
std::atomic<std::int64_t> g_launches{0};

// A stack below a page that must not be touched.
class Stack {
  public:
    Stack() : guard_(static_cast<std::size_t>(sysconf(_SC_PAGESIZE))) {
        memory_ =
            mmap(nullptr, guard_ + kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory_ == MAP_FAILED) {
            throw std::bad_alloc();
        }
        mprotect(memory_, guard_, PROT_NONE);
    }
    Stack(const Stack&) = delete;
    Stack& operator=(const Stack&) = delete;
    ~Stack() { munmap(memory_, guard_ + kStackBytes); }

    unsigned char* bottom() const { return static_cast<unsigned char*>(memory_) + guard_; }

  private:
    std::size_t guard_;
    void* memory_;
};

// A copy that was started and may be anywhere between not begun and done.
struct PendingCopy {
    void* to;
    const void* from;
    int size;
    int bytes;
    std::int64_t group;
};

enum class Waiting { no, at_block_barrier, at_warp_meeting };

struct Fiber {
    Position position;
    ucontext_t context;
    std::unique_ptr<Stack> stack;
    void* fake_stack = nullptr;
    bool finished = false;
    Waiting waiting = Waiting::no;
    const char* name = "";  // of what it waits at
    Place place{"", 0};
    int predicate = 0;
    int barrier_result = 0;
    unsigned mask = 0;
    std::size_t size = 0;
    alignas(16) unsigned char data[kMostMeetingBytes];
    std::vector<PendingCopy> copies;
    std::int64_t copy_group = 0;
};

struct Failure {};

std::string place_text(const Place& place) {
    const std::string file = place.file;
    return file.substr(file.find_last_of('/') + 1) + ":" + std::to_string(place.line);
}

// The block that runs on this thread.
class Block {
  public:
    void run(const Position& position, std::size_t shared_bytes, Body body, const void* context, std::mt19937_64& random) {
        body_ = body;
        body_context_ = context;
        error_.clear();
        threads_ = position.block_dim.x * position.block_dim.y * position.block_dim.z;
        while (fibers_.size() < threads_) {
            fibers_.push_back(std::make_unique<Fiber>());
            fibers_.back()->stack = std::make_unique<Stack>();
        }
        // On the heap and of exactly this size: an access beyond it is one that AddressSanitizer reports.
        const std::unique_ptr<unsigned char, void (*)(void*)> shared(
            static_cast<unsigned char*>(shared_bytes == 0 ? nullptr : std::malloc(shared_bytes)), std::free);
        shared_ = shared.get();
        for (std::size_t i = 0; i < shared_bytes; ++i) {
            shared_[i] = 0xff;  // NaN, and an index that leads nowhere
        }
        for (unsigned i = 0; i < threads_; ++i) {
            start(*fibers_[i], position, i);
        }
        std::vector<unsigned> order(threads_);
        std::iota(order.begin(), order.end(), 0u);
        std::size_t alive = threads_;
        while (alive > 0 && error_.empty()) {
            std::shuffle(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(alive), random);
            bool progress = false;
            for (std::size_t i = 0; i < alive && error_.empty(); ++i) {
                Fiber& fiber = *fibers_[order[i]];
                if (fiber.waiting == Waiting::no) {
                    progress = true;
                    resume(fiber);
                }
            }
            const auto end = order.begin() + static_cast<std::ptrdiff_t>(alive);
            alive = static_cast<std::size_t>(
                std::remove_if(order.begin(), end, [&](unsigned i) { return fibers_[i]->finished; }) - order.begin());
            if (error_.empty() && !progress) {
                check_deadlock();
            }
        }
        shared_ = nullptr;
        current_ = nullptr;
    }

    const std::string& error() const { return error_; }
    Fiber& current() { return *current_; }
    unsigned char* shared() const { return shared_; }

    // Ends the kernel: the current fiber unwinds its stack, and no other runs again.
    [[noreturn]] void fail(const std::string& text) {
        const Position& at = current_->position;
        error_ = text + " (thread " + std::to_string(at.thread.x) + " of block " + std::to_string(at.block.x) + ")";
        throw Failure();
    }

    int barrier(int predicate, const char* name, Place place) {
        Fiber& fiber = *current_;
        fiber.predicate = predicate;
        wait(fiber, Waiting::at_block_barrier, name, place);
        release_barrier_if_complete();
        while (fiber.waiting != Waiting::no) {
            leave(fiber, &fiber.fake_stack);
        }
        return fiber.barrier_result;
    }

    void meeting(unsigned mask, const char* name, void* data, std::size_t size, WarpWork work, Place place) {
        Fiber& fiber = *current_;
        const unsigned lane = lane_of(fiber);
        if ((mask >> lane & 1u) == 0) {
            fail(std::string(name) + " at " + place_text(place) + ": lane " + std::to_string(lane) + " is not in its mask");
        }
        if (size > kMostMeetingBytes) {
            fail(std::string(name) + " at " + place_text(place) + ": too large");
        }
        fiber.mask = mask;
        fiber.size = size;
        std::memcpy(fiber.data, data, size);
        wait(fiber, Waiting::at_warp_meeting, name, place);
        meet_if_complete(fiber, lane, work);
        while (fiber.waiting != Waiting::no) {
            leave(fiber, &fiber.fake_stack);
        }
        std::memcpy(data, fiber.data, size);
    }

  private:
    static unsigned index_of(const Fiber& fiber) {
        const Position& at = fiber.position;
        return at.thread.x + at.block_dim.x * (at.thread.y + at.block_dim.y * at.thread.z);
    }
    static unsigned lane_of(const Fiber& fiber) { return index_of(fiber) % kLanes; }

    void wait(Fiber& fiber, Waiting waiting, const char* name, Place place) {
        fiber.waiting = waiting;
        fiber.name = name;
        fiber.place = place;
    }

    void release_barrier_if_complete() {
        const Fiber& own = *current_;
        int count = 0;
        for (unsigned i = 0; i < threads_; ++i) {
            const Fiber& other = *fibers_[i];
            if (other.waiting != Waiting::at_block_barrier) {
                return;
            }
            count += other.predicate != 0;
        }
        for (unsigned i = 0; i < threads_; ++i) {
            if (fibers_[i]->place.line != own.place.line || std::strcmp(fibers_[i]->place.file, own.place.file) != 0) {
                fail(std::string("threads of a block meet at different barriers: ") + place_text(own.place) + " and " +
                     place_text(fibers_[i]->place));
            }
        }
        for (unsigned i = 0; i < threads_; ++i) {
            fibers_[i]->waiting = Waiting::no;
            fibers_[i]->barrier_result = count;
        }
    }

    void meet_if_complete(Fiber& own, unsigned lane, WarpWork work) {
        const unsigned first = index_of(own) - lane;
        unsigned char* lanes[kLanes] = {};
        for (unsigned i = 0; i < kLanes; ++i) {
            if ((own.mask >> i & 1u) == 0) {
                continue;
            }
            if (first + i >= threads_) {
                fail(std::string(own.name) + " at " + place_text(own.place) + ": lane " + std::to_string(i) +
                     " of its mask does not exist");
            }
            Fiber& other = *fibers_[first + i];
            if (other.finished) {
                fail(std::string(own.name) + " at " + place_text(own.place) + ": lane " + std::to_string(i) +
                     " of its mask has ended");
            }
            if (other.waiting != Waiting::at_warp_meeting) {
                return;
            }
            if (other.mask != own.mask || other.size != own.size || other.place.line != own.place.line ||
                std::strcmp(other.name, own.name) != 0 || std::strcmp(other.place.file, own.place.file) != 0) {
                fail(std::string("lanes of a warp diverge: ") + own.name + " at " + place_text(own.place) + " and " +
                     other.name + " at " + place_text(other.place));
            }
            lanes[i] = other.data;
        }
        work(lanes, own.mask);
        for (unsigned i = 0; i < kLanes; ++i) {
            if (lanes[i] != nullptr) {
                fibers_[first + i]->waiting = Waiting::no;
            }
        }
    }

    // Nobody can go on: says who waits where, and who does not come.
    void check_deadlock() {
        const Fiber* waiting = nullptr;
        const Fiber* other = nullptr;
        for (unsigned i = 0; i < threads_; ++i) {
            const Fiber& fiber = *fibers_[i];
            if (fiber.waiting == Waiting::at_block_barrier) {
                waiting = &fiber;
            }
        }
        for (unsigned i = 0; i < threads_; ++i) {
            const Fiber& fiber = *fibers_[i];
            if (waiting == nullptr && !fiber.finished) {
                waiting = &fiber;
            }
        }
        for (unsigned i = 0; i < threads_; ++i) {
            const Fiber& fiber = *fibers_[i];
            const bool expected = waiting->waiting == Waiting::at_block_barrier ||
                                  (i / kLanes == index_of(*waiting) / kLanes && (waiting->mask >> i % kLanes & 1u) != 0);
            if (expected && fiber.waiting != waiting->waiting) {
                other = &fiber;
            }
        }
        const Position& at = waiting->position;
        error_ = "thread " + std::to_string(at.thread.x) + " of block " + std::to_string(at.block.x) + " waits in vain at " +
                 waiting->name + " (" + place_text(waiting->place) + ")";
        if (other != nullptr) {
            error_ += ": thread " + std::to_string(other->position.thread.x) +
                      (other->finished ? std::string(" has ended")
                                       : std::string(" is at ") + other->name + " (" + place_text(other->place) + ")");
        }
    }

    void start(Fiber& fiber, const Position& position, unsigned index) {
        fiber.position = position;
        fiber.position.thread = {index % position.block_dim.x, index / position.block_dim.x % position.block_dim.y,
                                 index / (position.block_dim.x * position.block_dim.y)};
        fiber.finished = false;
        fiber.waiting = Waiting::no;
        fiber.copies.clear();
        fiber.copy_group = 0;
        fiber.fake_stack = nullptr;
#ifdef TAM_ADDRESS_SANITIZER
        __asan_unpoison_memory_region(fiber.stack->bottom(), kStackBytes);
#endif
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack->bottom();
        fiber.context.uc_stack.ss_size = kStackBytes;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, &Block::entry, 0);
    }

    static void entry();

    void resume(Fiber& fiber) {
        current_ = &fiber;
#ifdef TAM_ADDRESS_SANITIZER
        __sanitizer_start_switch_fiber(&scheduler_fake_stack_, fiber.stack->bottom(), kStackBytes);
#endif
        swapcontext(&scheduler_, &fiber.context);
#ifdef TAM_ADDRESS_SANITIZER
        __sanitizer_finish_switch_fiber(scheduler_fake_stack_, nullptr, nullptr);
#endif
    }

    void entered([[maybe_unused]] void* fake_stack) {
#ifdef TAM_ADDRESS_SANITIZER
        __sanitizer_finish_switch_fiber(fake_stack, &scheduler_stack_, &scheduler_stack_bytes_);
#endif
    }

    // Back to the scheduler; with null for good.
    void leave(Fiber& fiber, [[maybe_unused]] void** fake_stack) {
#ifdef TAM_ADDRESS_SANITIZER
        __sanitizer_start_switch_fiber(fake_stack, scheduler_stack_, scheduler_stack_bytes_);
#endif
        swapcontext(&fiber.context, &scheduler_);
        entered(fiber.fake_stack);
    }

    std::vector<std::unique_ptr<Fiber>> fibers_;
    unsigned threads_ = 0;
    Fiber* current_ = nullptr;
    unsigned char* shared_ = nullptr;
    Body body_ = nullptr;
    const void* body_context_ = nullptr;
    std::string error_;
    ucontext_t scheduler_;
    [[maybe_unused]] void* scheduler_fake_stack_ = nullptr;
    [[maybe_unused]] const void* scheduler_stack_ = nullptr;
    [[maybe_unused]] std::size_t scheduler_stack_bytes_ = 0;
};

thread_local Block g_block;

void Block::entry() {
    Block& block = g_block;
    block.entered(nullptr);
    try {
        block.body_(block.body_context_);
    } catch (const Failure&) {  // its text is in error_
    }
    block.current_->finished = true;
    block.leave(*block.current_, nullptr);
}

cudaError_t refuse(cudaError_t error, const std::string& text) {
    g_error_text = text;
    return error;
}

// The sign of the error that an approximation makes, fixed for every argument as on a device.
float perturbed(float exact, float argument, float units) {
    const std::uint32_t bits = emulated_bit_cast<std::uint32_t>(argument);
    const std::uint32_t hash = bits * 2654435761u ^ bits >> 15;
    const float unit = std::ldexp(1.0f, std::ilogb(exact) - 23);
    const float away = (hash >> 16 & 1u) != 0 ? units * unit : (hash >> 17 & 1u) != 0 ? -units * unit : 0.0f;
    return exact + away;
}

float flushed(float x) {
    return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x;
}

}  // namespace

cudaError_t run(dim3 grid, dim3 block, std::size_t shared_bytes, Body body, const void* context) {
    g_error_text.clear();
    const std::uint64_t threads = std::uint64_t{block.x} * block.y * block.z;
    const std::uint64_t blocks = std::uint64_t{grid.x} * grid.y * grid.z;
    if (threads == 0 || threads > kMostThreads || blocks == 0 || grid.x > 0x7fffffffu || grid.y > 0xffffu ||
        grid.z > 0xffffu || block.z > 64 || shared_bytes > kMostSharedBytes) {
        return refuse(cudaErrorInvalidConfiguration, "invalid configuration argument: " + std::to_string(blocks) +
                                                         " blocks of " + std::to_string(threads) + " threads with " +
                                                         std::to_string(shared_bytes) + " bytes of shared memory");
    }
    std::mt19937_64 random(g_seed.load());
    g_launches.fetch_add(1);
    std::vector<std::uint64_t> order(blocks);
    std::iota(order.begin(), order.end(), std::uint64_t{0});
    std::shuffle(order.begin(), order.end(), random);
    Position position{};
    position.block_dim = block;
    position.grid_dim = grid;
    for (const std::uint64_t index : order) {
        position.block = {static_cast<unsigned>(index % grid.x), static_cast<unsigned>(index / grid.x % grid.y),
                          static_cast<unsigned>(index / grid.x / grid.y)};
        g_block.run(position, shared_bytes, body, context, random);
        if (!g_block.error().empty()) {
            return refuse(cudaErrorLaunchFailure, g_block.error());
        }
    }
    return cudaSuccess;
}

void set_seed(std::uint64_t seed) {
    g_seed = seed;
}

std::int64_t launches() {
    return g_launches;
}

const Position& position() {
    return g_block.current().position;
}

unsigned char* shared_memory() {
    return g_block.shared();
}

int block_barrier(int predicate, const char* name, Place place) {
    return g_block.barrier(predicate, name, place);
}

void warp_meeting(unsigned mask, const char* name, void* data, std::size_t size, WarpWork work, Place place) {
    g_block.meeting(mask, name, data, size, work, place);
}

float reciprocal_approximate(float x) {
    const float argument = flushed(x);
    const float exact = flushed(1.0f / argument);
    int exponent;
    const bool power_of_two = std::fabs(std::frexp(argument, &exponent)) == 0.5f;
    return exact == 0.0f || !std::isfinite(exact) || power_of_two ? exact : perturbed(exact, argument, 1.0f);
}

float exp2_approximate(float x) {
    const float exact = flushed(static_cast<float>(std::exp2(static_cast<double>(x))));
    return exact == 0.0f || !std::isfinite(exact) || x == std::floor(x) ? exact : perturbed(exact, x, 2.0f);
}

void copy_async(void* shared, const void* global, int size, int bytes) {
    Fiber& fiber = g_block.current();
    const auto alignment = static_cast<std::uintptr_t>(size) - 1;
    if (bytes < 0 || bytes > size || (reinterpret_cast<std::uintptr_t>(shared) & alignment) != 0 ||
        (reinterpret_cast<std::uintptr_t>(global) & alignment) != 0) {
        g_block.fail("cp.async of " + std::to_string(bytes) + " of " + std::to_string(size) +
                     " bytes: misaligned, or too many");
    }
    std::memset(shared, 0xff, static_cast<std::size_t>(size));  // what a reader that does not wait may see
    fiber.copies.push_back({shared, global, size, bytes, fiber.copy_group});
}

void copy_async_commit() {
    ++g_block.current().copy_group;
}

void copy_async_wait(int pending) {
    Fiber& fiber = g_block.current();
    const auto is_due = [&](const PendingCopy& copy) { return copy.group < fiber.copy_group - pending; };
    for (const PendingCopy& copy : fiber.copies) {
        if (is_due(copy)) {
            std::memset(copy.to, 0, static_cast<std::size_t>(copy.size));
            std::memcpy(copy.to, copy.from, static_cast<std::size_t>(copy.bytes));
        }
    }
    fiber.copies.erase(std::remove_if(fiber.copies.begin(), fiber.copies.end(), is_due), fiber.copies.end());
}

namespace {

// An address in, four registers out.
struct LoadedMatrices {
    const unsigned char* row;
    std::uint32_t registers[4];

    static void work(unsigned char* const* lanes, unsigned) {
        LoadedMatrices all[kLanes];
        for (unsigned lane = 0; lane < kLanes; ++lane) {
            std::memcpy(&all[lane], lanes[lane], sizeof all[lane]);
        }
        for (unsigned lane = 0; lane < kLanes; ++lane) {
            for (unsigned matrix = 0; matrix < 4; ++matrix) {
                std::memcpy(&all[lane].registers[matrix], all[matrix * 8 + lane / 4].row + lane % 4 * 4, 4);
            }
            std::memcpy(lanes[lane], &all[lane], sizeof all[lane]);
        }
    }
};

}  // namespace

void load_matrix_x4(std::uint32_t (&r)[4], const void* shared) {
    if (reinterpret_cast<std::uintptr_t>(shared) % 16 != 0) {
        g_block.fail("ldmatrix: a row is not aligned to 16 bytes");
    }
    LoadedMatrices matrices{static_cast<const unsigned char*>(shared), {}};
    warp_meeting(0xffffffffu, "ldmatrix", &matrices, sizeof matrices, &LoadedMatrices::work, {"ldmatrix", 0});
    std::memcpy(r, matrices.registers, sizeof r);
}

float float_from_half(std::uint16_t bits) {
    const float sign = (bits >> 15) != 0 ? -1.0f : 1.0f;
    const int exponent = bits >> 10 & 31;
    const int mantissa = bits & 1023;
    if (exponent == 31) {
        return mantissa != 0 ? std::nanf("") : sign * HUGE_VALF;
    }
    const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                          : std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
    return sign * magnitude;
}

std::uint16_t half_from_float(float value) {
    const unsigned sign = std::signbit(value) ? 0x8000u : 0u;
    const float magnitude = std::fabs(value);
    if (value != value) {
        return 0x7fff;
    }
    if (magnitude >= 65520.0f) {
        return static_cast<std::uint16_t>(sign | 0x7c00u);
    }
    if (magnitude < 0x1p-14f) {
        return static_cast<std::uint16_t>(sign | static_cast<unsigned>(std::nearbyint(std::ldexp(magnitude, 24))));
    }
    const unsigned bits = emulated_bit_cast<unsigned>(magnitude);
    const unsigned rounded = bits + 0xfffu + (bits >> 13 & 1u);
    return static_cast<std::uint16_t>(sign | ((rounded >> 13) - (112u << 10)));
}

}  // namespace tam::cuda::emulation

const char* cudaGetErrorString(cudaError_t error) {
    using tam::cuda::emulation::g_error_text;
    if (error == cudaSuccess) {
        return "no error";
    }
    return g_error_text.empty() ? (error == cudaErrorInvalidValue ? "invalid argument" : "unspecified launch failure")
                                : g_error_text.c_str();
}
