#include "simd_serial.h"

#include "least_squares_scale.inl"

namespace tam::cpu {

const LeastSquaresScaleKernels least_squares_scale_serial = {
    "serial",
    serial::least_squares_scale_f32_serial,
    serial::least_squares_scale_f64_serial,
};

}  // namespace tam::cpu
