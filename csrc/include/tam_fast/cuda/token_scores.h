#pragma once

#include "tam_fast/cuda/runtime.h"
#include "tam_fast/params.h"

namespace tam::cuda {

struct TokenScoresItem {
    MatrixView hidden;                        // (S, C)
    const std::int64_t* positions = nullptr;  // (P,) rows of `hidden`; null: row p
    std::int64_t position_count = 0;          // P
    const std::int64_t* classes = nullptr;    // (U,) rows of the classifier
    std::int64_t class_count = 0;             // U
    float* scores = nullptr;                  // (U, P), unit column stride
    std::int64_t row_stride = 0;              // of `scores`
};

// Memory that lets several blocks share the channels of one tile: worth it where there are few tiles. Launches that may run
// at the same time need their own.
struct TokenScoresWorkspace {
    void* data = nullptr;    // 16-byte aligned, zeros before its first use; launches leave it fit for the next; may be null
    std::int64_t bytes = 0;  // what is there; kTokenScoresWorkspaceBytes are enough for whatever is worth splitting
};

inline constexpr std::int64_t kTokenScoresWorkspaceBytes = 24 << 20;

// How the work is laid out: squares of 64 or (halves alone) 128 classes and positions, and how many blocks share the
// channels of each, which takes a workspace. A tile of 0 leaves both to the launcher.
struct TokenScoresPlan {
    int tile = 0;
    int splits = 1;
};

// scores[u, p] = max(<hidden[positions[p]], classifier[classes[u]]>, 0); NaN stays NaN. A position or class that is out of
// range gives NaN and reads nothing. `flag`, if any, becomes 1 where a sum is NaN or Inf before the maximum is taken.
//
// float16 and bfloat16 of one kind are multiplied on tensor cores, everything else in float32. Sums are float32: over 64
// channels (float32: 32) each, then over those. A plan that cannot be met is cudaErrorInvalidValue.
cudaError_t launch_token_scores(const TokenScoresItem* items, std::int64_t count, const MatrixView& classifier,
                                std::int32_t* flag, const TokenScoresWorkspace& workspace, const TokenScoresPlan& plan,
                                cudaStream_t stream);

}  // namespace tam::cuda
