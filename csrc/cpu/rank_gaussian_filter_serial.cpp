#include "simd_serial.h"

#include "rank_gaussian_filter.inl"

namespace tam::cpu {

const RankGaussianFilterKernels rank_gaussian_filter_serial = {
    "serial",
    serial::rank_gaussian_filter_plain_serial,
    serial::rank_gaussian_filter_scan_serial,
    serial::rank_gaussian_filter_f32_serial,
    serial::rank_gaussian_filter_f64_serial,
};

}  // namespace tam::cpu
