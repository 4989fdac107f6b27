#pragma once

#include "tam_fast/params.h"

namespace tam {

// Two tensors of one shape (leading dims..., size), each with its own strides.
struct LeastSquaresScaleParams {
    const void* target = nullptr;
    const void* interference = nullptr;
    DType target_dtype = DType::f32;
    DType interference_dtype = DType::f32;
    std::int32_t leading_dims = 0;
    std::int64_t leading_sizes[kMaxLeadingDims] = {};
    std::int64_t target_leading_strides[kMaxLeadingDims] = {};
    std::int64_t interference_leading_strides[kMaxLeadingDims] = {};
    std::int64_t size = 0;
    std::int64_t target_stride = 1;
    std::int64_t interference_stride = 1;
    float* scale = nullptr;  // (leading dims...), contiguous
};

// Closed form of Eq. 5 of the TAM paper: <target, interference> / <interference, interference> along the last dimension,
// 0 where the denominator is 0. Accumulated in float64.
void least_squares_scale(const LeastSquaresScaleParams* items, std::int64_t count, int threads);

}  // namespace tam
