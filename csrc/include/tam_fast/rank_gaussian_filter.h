#pragma once

#include "tam_fast/params.h"

namespace tam {

inline constexpr int kMaxKernelSize = 15;

// One batch of equally sized maps: (leading dims..., height, width).
struct RankGaussianFilterParams {
    const void* input = nullptr;
    void* output = nullptr;  // contiguous, dtype of the input
    DType dtype = DType::f32;
    std::int32_t leading_dims = 0;
    std::int64_t leading_sizes[kMaxLeadingDims] = {};
    std::int64_t leading_strides[kMaxLeadingDims] = {};
    std::int64_t height = 0;
    std::int64_t width = 0;
    std::int64_t row_stride = 0;
    std::int64_t col_stride = 1;
    std::int32_t kernel_size = 3;  // odd, 1..kMaxKernelSize
    // The official program divides 0 by 0 where a window is constant and positive; true reproduces its NaN.
    bool constant_window_nan = false;
};

// Eq. 6-7 of the TAM paper. For every k x k window with values v_0 <= ... <= v_(n-1), mean mu and deviation sd:
//   output = sum_r w_r v_r / sum_r w_r,  w_r = exp(-(r - n/2)^2 / (2 (sd / mu)^2)).
// mu <= 0 gives 0, sd == 0 the window's value, NaN or Inf inside a window NaN. Kernel size 1 copies finite values.
void rank_gaussian_filter(const RankGaussianFilterParams* items, std::int64_t count, int threads);

}  // namespace tam
