#pragma once

#include <cstdint>
#include <vector>

#include "parallel_items.h"
#include "rows_kernels.h"

namespace tam::cpu {

// Selected rows of a matrix as contiguous float32. Rows that the matrix does not hold so are converted, once, block by
// block; rows() may be used when all blocks are.
class ContextRows {
  public:
    // `index` names the rows; absent: the first `count`.
    ContextRows(const MatrixView& matrix, const IndexView& index, std::int64_t count);

    std::int64_t blocks() const;  // left to convert: 0 where all rows are contiguous float32 already
    void convert(const RowsKernels& kernels, std::int64_t block);
    const float* const* rows() const { return rows_.data(); }

  private:
    static constexpr std::int64_t kRowsPerBlock = 32;

    MatrixView matrix_;
    IndexView index_;
    std::vector<const float*> rows_;
    std::vector<float> converted_;
};

inline std::int64_t index_at(const IndexView& index, std::int64_t i) {
    return index.data == nullptr ? i : index.data[i * index.stride];
}

// How many target tokens make a task, given how many there are in all: enough to use a context panel again, few enough that
// their maps stay in L2.
std::int64_t targets_per_task(std::int64_t targets, std::int64_t size, int threads);

// Runs work(item, task) for the tasks of all items, each some targets of one of them. Item(params) has context
// (ContextRows), step (to be set here), targets(), size(), cost() in nanoseconds and tasks().
template <class Item, class Params, class Work>
void for_targets_of_all(const Params* params, std::int64_t count, int threads, const RowsKernels& rows, const Work& work) {
    std::vector<Item> items;
    items.reserve(static_cast<std::size_t>(count));
    std::int64_t targets = 0;
    double cost = 0.0;
    for (std::int64_t i = 0; i < count; ++i) {
        items.emplace_back(params[i]);
        targets += items.back().targets();
        cost += items.back().cost();
    }
    const int workers = worthwhile_threads(cost, threads);
    for (Item& item : items) {
        item.step = targets_per_task(targets, item.size(), workers);
    }
    parallel_for_items(
        items, workers, [](const Item& item) { return item.context.blocks(); },
        [&](Item& item, std::int64_t block) { item.context.convert(rows, block); });
    parallel_for_items(
        items, workers, [](const Item& item) { return item.tasks(); },
        [&](const Item& item, std::int64_t task) { work(item, task); });
}

// An odd number of cache lines, so that a column of the rows spreads over all cache sets.
inline std::int64_t work_pitch(std::int64_t size) {
    return ((size + 15) / 16 | 1) * 16;
}

}  // namespace tam::cpu
