#include "simd_serial.h"

#include "token_scores.inl"

namespace tam::cpu {

const TokenScoresKernels token_scores_serial = {
    "serial",
    serial::token_scores_f32_serial,
    serial::few_token_scores_f16_serial,
    serial::few_token_scores_bf16_serial,
};

}  // namespace tam::cpu
