#include "simd_avx2.h"

#include "finish_maps.inl"

namespace tam::cpu {

const FinishMapsKernels finish_maps_avx2 = {
    "avx2",
    avx2::normalise_f32_avx2,
};

}  // namespace tam::cpu
