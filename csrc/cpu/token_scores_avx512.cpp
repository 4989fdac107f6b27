#include "simd_avx512.h"

#include "token_scores.inl"

namespace tam::cpu {

const TokenScoresKernels token_scores_avx512 = {
    "avx512",
    avx512::token_scores_f32_avx512,
    avx512::few_token_scores_f16_avx512,
    avx512::few_token_scores_bf16_avx512,
};

}  // namespace tam::cpu
