#include "simd_avx512.h"

#include "rank_gaussian_filter.inl"

namespace tam::cpu {

const RankGaussianFilterKernels rank_gaussian_filter_avx512 = {
    "avx512",
    avx512::rank_gaussian_filter_plain_avx512,
    avx512::rank_gaussian_filter_scan_avx512,
    avx512::rank_gaussian_filter_f32_avx512,
    avx512::rank_gaussian_filter_f64_avx512,
};

}  // namespace tam::cpu
