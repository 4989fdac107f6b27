#pragma once

#include "tam_fast/params.h"

namespace tam {

struct GridSize {
    std::int64_t height;
    std::int64_t width;
};

// One answer: the maps of its T target tokens over N visual positions.
struct FinishMapsParams {
    MatrixView scores;                // (U, N): rows of token_scores restricted to visual positions
    IndexView activation_rows;        // (T,) rows of `scores` that are the activation maps; absent: row t
    IndexView context_rows;           // (K,) rows of `scores` that are the context maps; absent: row k
    MatrixView relevance;             // (T, K), 0 where a context token does not count
    MatrixView text_relevance;        // (T, L) raw relevances that are normalised together with the map
    IndexView text_length;            // (T,) how many of the L count; absent: all
    const GridSize* grids = nullptr;  // sum of height * width == N, row-major and in order
    std::int64_t grid_count = 0;
    std::int32_t kernel_size = 3;
    bool constant_window_nan = false;
    float* maps = nullptr;         // (T, N), contiguous
    float* text = nullptr;         // (T, L), contiguous, 0 beyond text_length
    float* scale = nullptr;        // (T,)
    std::uint8_t* flat = nullptr;  // (T,): 1 where map and text hold a single value and everything became 0
};

// estimated_causal_inference, then (x - min) / (max - min) over causal map and text together (Eq. 3), then
// rank_gaussian_filter on every grid: the bits of the separate operators, without their intermediate tensors.
void finish_maps(const FinishMapsParams* items, std::int64_t count, int threads);

}  // namespace tam
