#pragma once

#include <cstdint>

#include "tam_fast/estimated_causal_inference.h"

namespace tam::cpu {

inline constexpr std::int64_t kMaxInterferenceRows = 128;  // target tokens per block

// A block of target tokens. All rows are contiguous float32.
struct InterferenceBlock {
    const float* const* activation;
    const float* const* relevance;
    const float* const* context;
    std::int64_t targets;
    std::int64_t contexts;
    std::int64_t size;
    float* work;         // targets x pitch, for the interference maps
    std::int64_t pitch;  // a multiple of 16, at least size
    float* causal;       // may be `work`
    std::int64_t causal_stride;
    float* scale;
};

struct EstimatedCausalInferenceKernels {
    const char* isa;
    void (*infer_f32)(const InterferenceBlock& block);
};

extern const EstimatedCausalInferenceKernels estimated_causal_inference_serial;
extern const EstimatedCausalInferenceKernels estimated_causal_inference_avx2;
extern const EstimatedCausalInferenceKernels estimated_causal_inference_avx512;

const EstimatedCausalInferenceKernels& estimated_causal_inference_kernels();

}  // namespace tam::cpu
