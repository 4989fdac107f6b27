#pragma once

// Many items in one launch: they travel by value in the kernel's parameters, so that no launch needs a copy to the device
// that would have to outlive it.

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "platform.h"

namespace tam::cuda {

inline constexpr std::int64_t kMostItems = 64;
inline constexpr std::int64_t kMostBlocks = 0x7fffffff;  // of a grid, along x

// Division of integers below 2^31 by a divisor that the host knows: a multiplication.
struct Divider {
    std::uint32_t multiplier = 0;
    std::uint32_t shift = 0;

    Divider() = default;
    explicit Divider(std::uint32_t divisor) {
        while ((std::uint64_t{2} << shift) < divisor) {
            ++shift;
        }
        const std::uint64_t power = std::uint64_t{1} << (32 + shift);
        multiplier = divisor == 1 ? 0 : static_cast<std::uint32_t>((power + divisor - 1) / divisor);
    }
    TAM_DEVICE std::uint32_t quotient(std::uint32_t value) const {
        return multiplier == 0 ? value : __umulhi(value, multiplier) >> shift;
    }
};

template <class Item, int Capacity>
struct Items {
    static constexpr int kCapacity = Capacity;
    Item item[Capacity];
    std::int64_t end[Capacity];  // blocks of the items up to and with this one; of unused ones: of all

    // The item of a block, and which of the item's blocks it is.
    TAM_DEVICE const Item& of_block(std::int64_t block, std::int64_t& within) const {
        int low = 0;
        if constexpr (Capacity > 1) {
            for (int step = Capacity / 2; step > 0; step /= 2) {
                low += end[low + step - 1] <= block ? step : 0;
            }
            within = low == 0 ? block : block - end[low - 1];
        } else {
            within = block;
        }
        return item[low];
    }
};

// Calls send(items, blocks) -> cudaError_t with Items of capacity 1 or 64 until all items are under way, leaving out those
// without blocks. blocks(item) says how many an item takes.
template <class Item, class Blocks, class Send>
cudaError_t launch_items(const Item* items, std::int64_t count, const Blocks& blocks, const Send& send) {
    const auto fill_and_send = [&](auto& batch, const Item* const* chosen, std::int64_t size, std::int64_t total) {
        std::int64_t end = 0;
        for (std::int64_t i = 0; i < std::decay_t<decltype(batch)>::kCapacity; ++i) {
            batch.item[i] = *chosen[std::min(i, size - 1)];
            end += i < size ? blocks(*chosen[i]) : 0;
            batch.end[i] = end;
        }
        return send(batch, total);
    };
    for (std::int64_t i = 0; i < count;) {
        const Item* chosen[kMostItems];
        std::int64_t size = 0;
        std::int64_t total = 0;
        for (; i < count && size < kMostItems; ++i) {
            const std::int64_t more = blocks(items[i]);
            if (more > kMostBlocks) {
                return cudaErrorInvalidConfiguration;
            }
            if (total + more > kMostBlocks) {
                break;
            }
            if (more > 0) {
                chosen[size++] = &items[i];
                total += more;
            }
        }
        if (size == 0) {
            continue;
        }
        cudaError_t error = cudaSuccess;
        if (size == 1) {
            Items<Item, 1> batch;
            error = fill_and_send(batch, chosen, size, total);
        } else {
            Items<Item, kMostItems> batch;
            error = fill_and_send(batch, chosen, size, total);
        }
        if (error != cudaSuccess) {
            return error;
        }
    }
    return cudaSuccess;
}

}  // namespace tam::cuda
