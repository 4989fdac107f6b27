#include "simd_avx2.h"

#include "least_squares_scale.inl"

namespace tam::cpu {

const LeastSquaresScaleKernels least_squares_scale_avx2 = {
    "avx2",
    avx2::least_squares_scale_f32_avx2,
    avx2::least_squares_scale_f64_avx2,
};

}  // namespace tam::cpu
