#pragma once

#include <cstdint>
#include <vector>

#include "rows_kernels.h"

namespace tam::cpu {

// Selected rows of a matrix as contiguous float32, converted once where the matrix does not hold them so.
class ContextRows {
  public:
    // `index` names the rows; absent: the first `count`.
    ContextRows(const RowsKernels& kernels, const MatrixView& matrix, const IndexView& index, std::int64_t count,
                int threads);

    const float* const* rows() const { return rows_.data(); }
    // Which rows hold NaN or Inf; null where none does.
    const std::uint8_t* special() const { return any_special_ ? special_.data() : nullptr; }

  private:
    std::vector<const float*> rows_;
    std::vector<float> converted_;
    std::vector<std::uint8_t> special_;
    bool any_special_ = false;
};

inline std::int64_t index_at(const IndexView& index, std::int64_t i) {
    return index.data == nullptr ? i : index.data[i * index.stride];
}

// How many target tokens make a task: enough to use a context panel again, few enough that their maps stay in L2.
std::int64_t targets_per_task(std::int64_t targets, std::int64_t size, int threads);

inline std::int64_t work_pitch(std::int64_t size) {
    return (size + 15) / 16 * 16 + 16;
}

}  // namespace tam::cpu
