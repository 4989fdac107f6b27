#include "simd_avx512.h"

#include "least_squares_scale.inl"

namespace tam::cpu {

const LeastSquaresScaleKernels least_squares_scale_avx512 = {
    "avx512",
    avx512::least_squares_scale_f32_avx512,
    avx512::least_squares_scale_f64_avx512,
};

}  // namespace tam::cpu
