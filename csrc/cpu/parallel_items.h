#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "parallel.h"

namespace tam::cpu {

// parallel_for over the blocks of all items together: work(item, block) for every block below blocks(item). A list of many
// small items then keeps as many threads busy as one large item.
template <class Item, class Blocks, class Work>
void parallel_for_items(std::vector<Item>& items, int threads, const Blocks& blocks, const Work& work) {
    std::vector<std::int64_t> first;  // task of every item
    first.reserve(items.size());
    std::int64_t tasks = 0;
    for (const Item& item : items) {
        first.push_back(tasks);
        tasks += blocks(item);
    }
    parallel_for(tasks, threads, [&](std::int64_t task) {
        const auto after = std::upper_bound(first.begin(), first.end(), task);
        const std::size_t at = static_cast<std::size_t>(after - first.begin()) - 1;
        work(items[at], task - first[at]);
    });
}

}  // namespace tam::cpu
