// Dot products of hidden states and classifier rows, for one instruction set.
//
// Every product is summed over 16 fixed partial lanes (channel c goes to lane c mod 16, in order, fused) which are then
// added in a fixed tree: the bits depend neither on the vector width nor on how the outputs are tiled.

#include "convert.inl"
#include "token_scores_kernels.h"

namespace tam::cpu::TAM_ISA {
namespace {

constexpr int kParts = kChannelGroup / kLanes;  // vectors that make up the partial lanes
constexpr int kRowTile = kLanes == 8 ? 2 : 4;   // AVX2 has registers for no more sums than these times a panel's width
constexpr std::int64_t kPanelGroups = 32;       // of a full panel at a time: 12 KB, which stay in L1

typedef float f32q __attribute__((vector_size(16)));
typedef std::int32_t i32q __attribute__((vector_size(16)));

template <int A, int B, int C, int D>
TAM_INLINE f32q pick(f32q x, f32q y) {
#ifdef __clang__
    return __builtin_shufflevector(x, y, A, B, C, D);
#else
    return __builtin_shuffle(x, y, i32q{A, B, C, D});
#endif
}

// The first two steps of the tree over 16 partial lanes.
TAM_INLINE f32q four_lanes(const float* lanes) {
    return (load<f32q>(lanes) + load<f32q>(lanes + 8)) + (load<f32q>(lanes + 4) + load<f32q>(lanes + 12));
}

// The other two, for four products at once.
TAM_INLINE f32q sums_of(f32q a, f32q b, f32q c, f32q d) {
    const f32q ab_low = pick<0, 4, 1, 5>(a, b);  // a0 b0 a1 b1
    const f32q cd_low = pick<0, 4, 1, 5>(c, d);
    const f32q ab_high = pick<2, 6, 3, 7>(a, b);  // a2 b2 a3 b3
    const f32q cd_high = pick<2, 6, 3, 7>(c, d);
    const f32q ab = ab_low + ab_high;
    const f32q cd = cd_low + cd_high;
    return pick<0, 1, 4, 5>(ab, cd) + pick<2, 3, 6, 7>(ab, cd);
}

// How a row is stored: as float32, or as the 16-bit Half or BFloat, which are widened where they are read.
struct Single {};

template <class Storage>
TAM_INLINE f32v values_at(const void* row, std::int64_t channel, Storage) {
    return widen(load<u16v>(static_cast<const std::uint16_t*>(row) + channel), Storage{});
}
TAM_INLINE f32v values_at(const void* row, std::int64_t channel, Single) {
    return load<f32v>(static_cast<const float*>(row) + channel);
}

// sums[row][column][lane] += rows x panel over some groups of channels
template <class Storage, int Rows, int Width>
TAM_INLINE void accumulate_tile(const void* const* rows, const float* panel, std::int64_t begin, std::int64_t end,
                                float* sums) {
    const void* row[Rows];
    for (int r = 0; r < Rows; ++r) {
        row[r] = rows[r];
    }
    for (int part = 0; part < kParts; ++part) {
        float* const lanes = sums + part * kLanes;
        f32v sum[Rows][Width] = {};
        if (begin != 0) {
            TAM_UNROLL
            for (int i = 0; i < Rows * Width; ++i) {
                sum[i / Width][i % Width] = load<f32v>(lanes + i * kChannelGroup);
            }
        }
        for (std::int64_t group = begin; group < end; ++group) {
            const std::int64_t channel = group * kChannelGroup + part * kLanes;
            const float* const from = panel + group * (Width * kChannelGroup) + part * kLanes;
            f32v values[Rows];
            TAM_UNROLL
            for (int r = 0; r < Rows; ++r) {
                values[r] = values_at(row[r], channel, Storage{});
            }
            TAM_UNROLL
            for (int c = 0; c < Width; ++c) {
                const f32v weight = in_register(load<f32v>(from + c * kChannelGroup));
                TAM_UNROLL
                for (int r = 0; r < Rows; ++r) {
                    sum[r][c] = fma(values[r], weight, sum[r][c]);
                }
            }
        }
        TAM_UNROLL
        for (int i = 0; i < Rows * Width; ++i) {
            store(lanes + i * kChannelGroup, sum[i / Width][i % Width]);
        }
    }
}

// The rows that are left after whole tiles.
template <class Storage, int Rows, int Width>
TAM_INLINE void accumulate_rest(const ScoreBlock& block, const float* panel, std::int64_t begin, std::int64_t end,
                                std::int64_t row, float* sums) {
    if constexpr (Rows > 0) {
        if (block.row_count - row == Rows) {
            accumulate_tile<Storage, Rows, Width>(block.rows + row, panel, begin, end, sums);
        } else {
            accumulate_rest<Storage, Rows - 1, Width>(block, panel, begin, end, row, sums);
        }
    }
}

template <int Rows, int Width>
TAM_INLINE void write_scores(const float* sums, float* scores, const ScoreBlock& block) {
    TAM_UNROLL
    for (int column = 0; column < Width; ++column) {
        f32q lanes[4] = {};
        TAM_UNROLL
        for (int row = 0; row < Rows; ++row) {
            lanes[row] = four_lanes(sums + (row * Width + column) * kChannelGroup);
        }
        const f32q sum = sums_of(lanes[0], lanes[1], lanes[2], lanes[3]);
        const f32q score = sum > 0.0f ? sum : sum <= 0.0f ? f32q{} : broadcast<f32q>(__builtin_nanf(""));
        float* const to = scores + column * block.column_stride;
        if (Rows == 4 && block.row_stride == 1) {
            store(to, score);
        } else {
            for (int row = 0; row < Rows; ++row) {
                to[row * block.row_stride] = score[row];
            }
        }
    }
}

template <class Storage, int Width>
void score_panel(const ScoreBlock& block, const float* panel, float* scores) {
    constexpr int kRowSums = Width * kChannelGroup;
    constexpr std::int64_t kGroups = kPanelGroups * kPanelWidth / Width;
    alignas(64) float sums[kMaxScoreRows * kRowSums];
    for (std::int64_t begin = 0; begin < block.groups; begin += kGroups) {
        const std::int64_t end = least(begin + kGroups, block.groups);
        std::int64_t row = 0;
        for (; row + kRowTile <= block.row_count; row += kRowTile) {
            accumulate_tile<Storage, kRowTile, Width>(block.rows + row, panel, begin, end, sums + row * kRowSums);
        }
        accumulate_rest<Storage, kRowTile - 1, Width>(block, panel, begin, end, row, sums + row * kRowSums);
    }
    std::int64_t row = 0;
    for (; row + 4 <= block.row_count; row += 4) {
        write_scores<4, Width>(sums + row * kRowSums, scores + row * block.row_stride, block);
    }
    for (; row < block.row_count; ++row) {
        write_scores<1, Width>(sums + row * kRowSums, scores + row * block.row_stride, block);
    }
}

void TAM_NAME(token_scores_f32)(const ScoreBlock& block) {
    for (std::int64_t column = 0; column < block.columns; column += kPanelWidth) {
        const float* const panel = block.panels + column * block.groups * kChannelGroup;
        float* const scores = block.scores + column * block.column_stride;
        switch (least(kPanelWidth, block.columns - column)) {
            case 1: score_panel<Single, 1>(block, panel, scores); break;
            case 2: score_panel<Single, 2>(block, panel, scores); break;
            case 3: score_panel<Single, 3>(block, panel, scores); break;
            case 4: score_panel<Single, 4>(block, panel, scores); break;
            case 5: score_panel<Single, 5>(block, panel, scores); break;
            default: score_panel<Single, kPanelWidth>(block, panel, scores); break;
        }
    }
}

template <class Storage>
TAM_INLINE void few_scores(const ScoreBlock& block) {
    static_assert(kFewColumns == 2);
    if (block.columns == 1) {
        score_panel<Storage, 1>(block, block.panels, block.scores);
    } else {
        score_panel<Storage, 2>(block, block.panels, block.scores);
    }
}

void TAM_NAME(few_token_scores_f16)(const ScoreBlock& block) {
    few_scores<Half>(block);
}

void TAM_NAME(few_token_scores_bf16)(const ScoreBlock& block) {
    few_scores<BFloat>(block);
}

}  // namespace
}  // namespace tam::cpu::TAM_ISA
