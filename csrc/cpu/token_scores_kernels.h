#pragma once

#include <cstdint>

#include "tam_fast/params.h"

namespace tam::cpu {

// A block of the product: contiguous float32 rows on both sides.
struct ScoreBlock {
    const float* const* hidden;      // one pointer per sequence position
    const float* const* classifier;  // one pointer per token
    std::int64_t positions;
    std::int64_t tokens;
    std::int64_t channels;
    float* scores;  // scores[token * stride + position]
    std::int64_t stride;
};

struct TokenScoresKernels {
    const char* isa;
    void (*scores_f32)(const ScoreBlock& block);
};

extern const TokenScoresKernels token_scores_serial;
extern const TokenScoresKernels token_scores_avx2;
extern const TokenScoresKernels token_scores_avx512;

}  // namespace tam::cpu
