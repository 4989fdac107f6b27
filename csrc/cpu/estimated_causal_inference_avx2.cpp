#include "simd_avx2.h"

#include "estimated_causal_inference.inl"

namespace tam::cpu {

const EstimatedCausalInferenceKernels estimated_causal_inference_avx2 = {
    "avx2",
    avx2::estimated_causal_inference_f32_avx2,
};

}  // namespace tam::cpu
