#pragma once

#include <cstdint>

#include "tam_fast/params.h"

namespace tam::cpu {

struct LeastSquaresScaleKernels {
    const char* isa;
    double (*scale_f32)(const float* target, const float* interference, std::int64_t size);
    double (*scale_f64)(const double* target, const double* interference, std::int64_t size);
};

extern const LeastSquaresScaleKernels least_squares_scale_serial;
extern const LeastSquaresScaleKernels least_squares_scale_avx2;
extern const LeastSquaresScaleKernels least_squares_scale_avx512;

}  // namespace tam::cpu
