#include "simd_serial.h"

#include "token_scores.inl"

namespace tam::cpu {

const TokenScoresKernels token_scores_serial = {
    "serial",
    serial::token_scores_f32_serial,
};

}  // namespace tam::cpu
