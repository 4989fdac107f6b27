#include "context_rows.h"

#include <algorithm>

#include "estimated_causal_inference_kernels.h"
#include "parallel.h"

namespace tam::cpu {

ContextRows::ContextRows(const RowsKernels& kernels, const MatrixView& matrix, const IndexView& index, std::int64_t count,
                         int threads)
    : rows_(static_cast<std::size_t>(count)), special_(static_cast<std::size_t>(count)) {
    if (!is_plain_f32(matrix)) {
        converted_.resize(static_cast<std::size_t>(count * matrix.cols));
    }
    constexpr std::int64_t kRowsPerTask = 32;
    const double cost = 0.05 * static_cast<double>(count) * static_cast<double>(matrix.cols);
    parallel_for((count + kRowsPerTask - 1) / kRowsPerTask, worthwhile_threads(cost, threads), [&](std::int64_t task) {
        for (std::int64_t k = task * kRowsPerTask; k < std::min(count, (task + 1) * kRowsPerTask); ++k) {
            float* const buffer = converted_.empty() ? nullptr : converted_.data() + k * matrix.cols;
            const std::size_t at = static_cast<std::size_t>(k);
            rows_[at] = row_f32(kernels, matrix, index_at(index, k), buffer);
            special_[at] = kernels.all_finite_f32(rows_[at], matrix.cols) ? 0 : 1;
        }
    });
    any_special_ = std::any_of(special_.begin(), special_.end(), [](std::uint8_t flag) { return flag != 0; });
}

std::int64_t targets_per_task(std::int64_t targets, std::int64_t size, int threads) {
    constexpr std::int64_t kCacheBytes = 512 * 1024;
    constexpr std::int64_t kTogether = 8;  // rows that the widest kernels hold in registers
    const std::int64_t bytes = static_cast<std::int64_t>(sizeof(float)) * std::max<std::int64_t>(size, 1);
    const std::int64_t fitting = std::clamp(kCacheBytes / bytes, kTogether, kMaxInterferenceRows);
    const std::int64_t share = (targets + 4 * threads - 1) / (4 * std::max(threads, 1));  // several tasks for each thread
    const std::int64_t wanted = threads > 1 ? std::min(fitting, share) : fitting;
    return std::max((wanted + kTogether - 1) / kTogether * kTogether, kTogether);
}

}  // namespace tam::cpu
