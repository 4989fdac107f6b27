#pragma once

#include <cstdint>

#include "tam_fast/params.h"

namespace tam::cpu {

inline constexpr int kChannelGroup = 16;           // channels are padded with zeros to whole groups
inline constexpr int kPanelWidth = 6;              // vectors that a panel interleaves
inline constexpr std::int64_t kMaxScoreRows = 48;  // rows per block
inline constexpr std::int64_t kFewColumns = 2;     // for which 16-bit rows are read as they are

// A block of the product of two sets of vectors, hidden states and classifier rows in either role, as contiguous float32.
// Panels hold kPanelWidth vectors each (the last one what is left): the first group of channels of every vector, then the
// second, and so on. For up to kFewColumns columns, rows may be contiguous 16-bit floats instead.
struct ScoreBlock {
    const void* const* rows;
    std::int64_t row_count;
    const float* panels;
    std::int64_t columns;  // vectors in the panels
    std::int64_t groups;   // of channels; at least 1
    float* scores;         // scores[row * row_stride + column * column_stride]
    std::int64_t row_stride;
    std::int64_t column_stride;
};

struct TokenScoresKernels {
    const char* isa;
    void (*scores_f32)(const ScoreBlock& block);
    void (*few_scores_f16)(const ScoreBlock& block);
    void (*few_scores_bf16)(const ScoreBlock& block);
};

extern const TokenScoresKernels token_scores_serial;
extern const TokenScoresKernels token_scores_avx2;
extern const TokenScoresKernels token_scores_avx512;

}  // namespace tam::cpu
