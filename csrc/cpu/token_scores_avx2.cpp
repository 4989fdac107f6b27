#include "simd_avx2.h"

#include "token_scores.inl"

namespace tam::cpu {

const TokenScoresKernels token_scores_avx2 = {
    "avx2",
    avx2::token_scores_f32_avx2,
    avx2::few_token_scores_f16_avx2,
    avx2::few_token_scores_bf16_avx2,
};

}  // namespace tam::cpu
