#include "simd_avx512.h"

#include "finish_maps.inl"

namespace tam::cpu {

const FinishMapsKernels finish_maps_avx512 = {
    "avx512",
    avx512::normalise_f32_avx512,
};

}  // namespace tam::cpu
