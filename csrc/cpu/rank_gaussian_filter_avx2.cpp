#include "simd_avx2.h"

#include "rank_gaussian_filter.inl"

namespace tam::cpu {

const RankGaussianFilterKernels rank_gaussian_filter_avx2 = {
    "avx2",
    avx2::rank_gaussian_filter_plain_avx2,
    avx2::rank_gaussian_filter_scan_avx2,
    avx2::rank_gaussian_filter_f32_avx2,
    avx2::rank_gaussian_filter_f64_avx2,
};

}  // namespace tam::cpu
