#pragma once

#include "tam_fast/cuda/runtime.h"
#include "tam_fast/params.h"

namespace tam::cuda {

// One more token of a stream. All memory is the device's; `state`, and what else the step needs to know of the token, is
// read when the kernel runs, so that a captured launch can be replayed for every token.
struct StreamStep {
    MatrixView prompt;                        // (P, C) states, unit column stride
    const std::int64_t* positions = nullptr;  // (M,) rows of `prompt`: visual positions, then those of the prompt's text
    std::int64_t position_count = 0;          // M
    MatrixView states;                        // (capacity, C) that predict the answer's tokens, unit column stride
    MatrixView classifier;                    // (V, C), unit column stride
    const std::int64_t* state = nullptr;  // (4,): token id, row of `scores`, length of the context, whether the row is new
    std::int64_t prompt_text = 0;         // n_p: context tokens of the prompt
    float* scores = nullptr;              // (rows, M + capacity)
    std::int64_t row_stride = 0;          // of `scores`
    // Row and name of the context tokens, the token's own last, n_p + capacity of them; one of each for the target.
    std::int64_t* context_rows = nullptr;
    std::int64_t* context_names = nullptr;
    std::int64_t* activation_row = nullptr;
    std::int64_t* target_name = nullptr;  // -1 stays: no interference
    std::int64_t* length = nullptr;
    std::int32_t* flag = nullptr;  // becomes 1 where a sum is NaN or Inf; null: not wanted
};

// scores[row, :M] of the token over the prompt, if the row is new, and scores[row, M:] over the length - n_p states before
// it, as token_scores gives them up to the order of summation; then what the target and its successors need to find them.
cudaError_t launch_stream_step(const StreamStep& step, cudaStream_t stream);

}  // namespace tam::cuda
