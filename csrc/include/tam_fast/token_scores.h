#pragma once

#include "tam_fast/params.h"

namespace tam {

struct TokenScoresParams {
    MatrixView hidden;        // (S, C)
    MatrixView classifier;    // (V, C); only the rows named by token_ids are read
    IndexView token_ids;      // (T,), each in [0, V)
    float* scores = nullptr;  // (T, S), contiguous
};

// Eq. 1 of the TAM paper: scores[t, s] = max(<hidden[s], classifier[token_ids[t]]>, 0); NaN stays NaN.
// Dot products are accumulated in float32 over 16 fixed lanes.
void token_scores(const TokenScoresParams* items, std::int64_t count, int threads);

}  // namespace tam
