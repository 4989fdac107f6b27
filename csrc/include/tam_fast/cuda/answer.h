#pragma once

#include <cstdint>

#include "tam_fast/params.h"

namespace tam::cuda {

// Rows of a float32 matrix with unit column stride in device memory. Row i is at data + (rows ? rows[i] : i) * row_stride.
struct Rows {
    const float* data = nullptr;
    std::int64_t row_stride = 0;
    const std::int64_t* rows = nullptr;
};

// One answer: T target tokens, K context tokens, N visual positions, L text relevances. All memory is the device's; row
// indices, names and lengths are read when the kernels run.
struct AnswerItem {
    Rows activation;  // T rows of N
    Rows context;     // K rows of N
    Rows relevance;   // T rows of K
    // The relevance of context token k to target t counts where k < lengths[t] and context_names[k] != target_names[t]. A
    // target named -1 has no interference. Null pointers: all count.
    const std::int64_t* context_names = nullptr;  // (K,)
    const std::int64_t* target_names = nullptr;   // (T,)
    const std::int64_t* lengths = nullptr;        // (T,)
    Rows text;                                    // T rows of L raw relevances that are normalised together with the map
    std::int64_t text_size = 0;                   // L
    const std::int64_t* text_lengths = nullptr;   // (T,): how many of the L count; null: all
    std::int64_t targets = 0;                     // T
    std::int64_t contexts = 0;                    // K
    std::int64_t positions = 0;                   // N
    std::int64_t grid_count = 1;
    std::int64_t height = 0;  // of every grid, where there is no table
    std::int64_t width = 0;
    const std::int64_t* grids = nullptr;  // (grid_count, 3): height, width, offset of the grid's first position
    // (T, N): E_t = sum_k r_tk A_k, undivided, times relevance_factor of the target's row. NaN and Inf of A_k are in E_t if
    // and only if r_tk != 0. Not read where nothing counts. finish_maps may use it as its working memory.
    float* interference = nullptr;
    void* maps = nullptr;  // (T, N)
    bool maps_uint8 = false;
    float* text_out = nullptr;     // (T, L); null: not wanted
    float* scale = nullptr;        // (T,)
    std::uint8_t* flat = nullptr;  // (T,): 1 where map and text hold a single value and everything became 0
};

}  // namespace tam::cuda
