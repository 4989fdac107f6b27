#pragma once

#include "tam_fast/params.h"

namespace tam {

struct EstimatedCausalInferenceParams {
    MatrixView activation;    // (T, N)
    MatrixView context;       // (K, N)
    MatrixView relevance;     // (T, K), 0 where a context token does not count
    float* causal = nullptr;  // (T, N), contiguous
    float* scale = nullptr;   // (T,), contiguous
};

// Eq. 4-5 of the TAM paper:
//   E_t = sum_k relevance[t, k] context[k] / (sum_k relevance[t, k] + 1e-8)
//   scale[t] = <activation[t], E_t> / <E_t, E_t>, 0 where E_t is 0 or there is no context
//   causal[t] = max(activation[t] - scale[t] E_t, 0)
// NaN or Inf in context row k reaches target t if and only if relevance[t, k] != 0.
void estimated_causal_inference(const EstimatedCausalInferenceParams* items, std::int64_t count, int threads);

}  // namespace tam
