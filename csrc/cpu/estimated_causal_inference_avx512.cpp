#include "simd_avx512.h"

#include "estimated_causal_inference.inl"

namespace tam::cpu {

const EstimatedCausalInferenceKernels estimated_causal_inference_avx512 = {
    "avx512",
    avx512::estimated_causal_inference_f32_avx512,
};

}  // namespace tam::cpu
