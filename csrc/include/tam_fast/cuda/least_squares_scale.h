#pragma once

#include "tam_fast/cuda/runtime.h"
#include "tam_fast/params.h"

namespace tam::cuda {

struct LeastSquaresScaleItem {
    MatrixView target;        // (T, N), unit column stride; a row stride of 0 repeats one row
    MatrixView interference;  // (T, N), likewise
    float* scale = nullptr;   // (T,)
};

// <target, interference> / <interference, interference> of every row, in float64; 0 where the denominator is 0.
cudaError_t launch_least_squares_scale(const LeastSquaresScaleItem* items, std::int64_t count, cudaStream_t stream);

}  // namespace tam::cuda
