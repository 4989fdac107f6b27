#pragma once

#include <cstdint>

#include "tam_fast/cuda/runtime.h"
#include "tam_fast/params.h"

namespace tam::cuda {

// One batch of equally sized maps (count, height, width). Strides count elements and may be zero or negative.
struct RankGaussianFilterItem {
    const void* input = nullptr;
    void* output = nullptr;  // contiguous, dtype of the input; must not overlap it
    DType dtype = DType::f32;
    std::int64_t count = 0;
    std::int64_t height = 0;
    std::int64_t width = 0;
    std::int64_t map_stride = 0;
    std::int64_t row_stride = 0;
    std::int64_t col_stride = 1;
};

// As tam::rank_gaussian_filter. One launch for all items of a dtype, as long as there are at most 64.
cudaError_t launch_rank_gaussian_filter(const RankGaussianFilterItem* items, std::int64_t count, int kernel_size,
                                        bool constant_window_nan, cudaStream_t stream);

}  // namespace tam::cuda
