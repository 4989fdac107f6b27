#include "simd_serial.h"

#include "estimated_causal_inference.inl"

namespace tam::cpu {

const EstimatedCausalInferenceKernels estimated_causal_inference_serial = {
    "serial",
    serial::estimated_causal_inference_f32_serial,
};

}  // namespace tam::cpu
