#include "context_rows.h"

#include <algorithm>

#include "estimated_causal_inference_kernels.h"

namespace tam::cpu {

ContextRows::ContextRows(const MatrixView& matrix, const IndexView& index, std::int64_t count)
    : matrix_(matrix), index_(index), rows_(static_cast<std::size_t>(count)) {
    if (is_plain_f32(matrix)) {
        for (std::int64_t k = 0; k < count; ++k) {
            rows_[static_cast<std::size_t>(k)] = static_cast<const float*>(element_of(matrix, index_at(index, k), 0));
        }
    } else {
        converted_.resize(static_cast<std::size_t>(count * matrix.cols));
    }
}

std::int64_t ContextRows::blocks() const {
    const std::int64_t count = static_cast<std::int64_t>(rows_.size());
    return is_plain_f32(matrix_) ? 0 : (count + kRowsPerBlock - 1) / kRowsPerBlock;
}

void ContextRows::convert(const RowsKernels& kernels, std::int64_t block) {
    const std::int64_t count = static_cast<std::int64_t>(rows_.size());
    for (std::int64_t k = block * kRowsPerBlock; k < std::min(count, (block + 1) * kRowsPerBlock); ++k) {
        rows_[static_cast<std::size_t>(k)] =
            row_f32(kernels, matrix_, index_at(index_, k), converted_.data() + k * matrix_.cols);
    }
}

std::int64_t targets_per_task(std::int64_t targets, std::int64_t size, int threads) {
    constexpr std::int64_t kCacheBytes = 768 * 1024;
    constexpr std::int64_t kTogether = 8;  // rows that the widest kernels hold in registers
    const std::int64_t bytes = static_cast<std::int64_t>(sizeof(float)) * std::max<std::int64_t>(size, 1);
    const std::int64_t fitting = std::clamp(kCacheBytes / bytes, kTogether, kMaxInterferenceRows);
    const std::int64_t share = (targets + 4 * threads - 1) / (4 * std::max(threads, 1));  // several tasks for each thread
    const std::int64_t wanted = threads > 1 ? std::min(fitting, share) : fitting;
    return std::max((wanted + kTogether - 1) / kTogether * kTogether, kTogether);
}

}  // namespace tam::cpu
