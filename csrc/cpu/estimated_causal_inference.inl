// Interference, scale and residual of a block of target tokens, for one instruction set.
//
// The interference is a matrix product with many zeros (a token's context ends before it). Its sum over the context is
// taken in chunks of 64 tokens: fused multiply-adds within a chunk, then one addition to the running sum. Neither the
// tiling nor the skipping of zeros changes a bit: a skipped term would add 0 to a sum that is never -0.

#include "dot_products.inl"
#include "estimated_causal_inference_kernels.h"

namespace tam::cpu::TAM_ISA {
namespace {

constexpr int kChunk = 64;  // context tokens
constexpr int kPanel = 64;  // visual positions worked on at a time: a packed panel takes 16 KB
constexpr int kRowTile = kLanes == 16 ? 8 : 4;
constexpr int kVectorTile = kLanes == 4 ? 1 : 2;

// The context tokens of a chunk that matter to a few targets, and with which weights.
struct ActiveList {
    int count;
    std::uint8_t index[kChunk];  // within the chunk
    float weight[kChunk][kRowTile];
};

// sums[row][0..] += sum over the list of weight[row] source[index][0..], for Vectors vectors
template <int Rows, int Vectors>
TAM_INLINE void accumulate_tile(const ActiveList& list, const float* const* source, std::int64_t offset, float* sums,
                                std::int64_t pitch) {
    f32v chunk[Rows][Vectors] = {};
    for (int i = 0; i < list.count; ++i) {
        const float* const from = source[list.index[i]] + offset;
        f32v values[Vectors];
        TAM_UNROLL
        for (int v = 0; v < Vectors; ++v) {
            values[v] = load<f32v>(from + v * kLanes);
        }
        TAM_UNROLL
        for (int row = 0; row < Rows; ++row) {
            const f32v weight = broadcast<f32v>(list.weight[i][row]);
            TAM_UNROLL
            for (int v = 0; v < Vectors; ++v) {
                chunk[row][v] = fma(weight, values[v], chunk[row][v]);
            }
        }
    }
    TAM_UNROLL
    for (int row = 0; row < Rows; ++row) {
        TAM_UNROLL
        for (int v = 0; v < Vectors; ++v) {
            float* const to = sums + row * pitch + v * kLanes;
            store(to, load<f32v>(to) + chunk[row][v]);
        }
    }
}

template <int Rows>
void accumulate_rows(const ActiveList& list, const float* const* source, int vectors, float* sums, std::int64_t pitch) {
    int v = 0;
    for (; v + kVectorTile <= vectors; v += kVectorTile) {
        accumulate_tile<Rows, kVectorTile>(list, source, v * kLanes, sums + v * kLanes, pitch);
    }
    for (; v < vectors; ++v) {
        accumulate_tile<Rows, 1>(list, source, v * kLanes, sums + v * kLanes, pitch);
    }
}

void accumulate(int rows, const ActiveList& list, const float* const* source, int vectors, float* sums, std::int64_t pitch) {
    if (list.count == 0) {
        return;
    }
    switch (rows) {
        case 1: return accumulate_rows<1>(list, source, vectors, sums, pitch);
        case 2: return accumulate_rows<2>(list, source, vectors, sums, pitch);
        case 4: return accumulate_rows<4>(list, source, vectors, sums, pitch);
        default: return accumulate_rows<kRowTile>(list, source, vectors, sums, pitch);
    }
}

// Rows of a block that are worked on together: as many as there are registers for, then 4, 2, 1.
int rows_together(std::int64_t left) {
    return left >= kRowTile ? kRowTile : left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

// A relevance row is brought to a maximum in [1, 2) by a power of two, so that products with context maps stay in range.
struct RelevanceScale {
    float factor;
    double denominator;  // of Eq. 4, times factor

    TAM_INLINE RelevanceScale of(const float* relevance, std::int64_t size) {
        std::int32_t largest = 0;
        double partial[4] = {};
        for (std::int64_t k = 0; k < size; ++k) {
            std::int32_t pattern;
            std::memcpy(&pattern, relevance + k, sizeof pattern);
            pattern &= 0x7fffffff;
            largest = largest < pattern && pattern < 0x7f800000 ? pattern : largest;
            partial[k % 4] += static_cast<double>(relevance[k]);
        }
        const std::int32_t opposite = 254 - (largest >> 23);
        const std::int32_t factor_bits = (opposite < 1 ? 1 : opposite) << 23;
        RelevanceScale result;
        std::memcpy(&result.factor, &factor_bits, sizeof result.factor);
        const double sum = (partial[0] + partial[1]) + (partial[2] + partial[3]);
        result.denominator = (sum + 1e-8) * static_cast<double>(result.factor);
        return result;
    }
};

// Lists what targets [row, row + rows) take from a chunk. False where that cannot be done together, because a context row
// with NaN or Inf counts for some of them only.
bool list_active(const InterferenceBlock& block, const RelevanceScale* scales, std::int64_t row, int rows,
                 std::int64_t chunk, int length, ActiveList& list) {
    list.count = 0;
    for (int i = 0; i < length; ++i) {
        int nonzero = 0;
        for (int r = 0; r < rows; ++r) {
            const float relevance = block.relevance[row + r][chunk + i];
            list.weight[list.count][r] = relevance * scales[row + r].factor;
            nonzero += relevance != 0;
        }
        if (nonzero != 0) {
            if (nonzero != rows && block.special != nullptr && block.special[chunk + i] != 0) {
                return false;
            }
            list.index[list.count++] = static_cast<std::uint8_t>(i);
        }
    }
    return true;
}

// A few rows with their list for the current chunk.
struct Group {
    std::int64_t row;
    int rows;
    ActiveList list;
};

// Splits the block into groups with their lists; a group that cannot be listed together becomes single rows.
int make_groups(const InterferenceBlock& block, const RelevanceScale* scales, std::int64_t chunk, int length,
                Group* groups) {
    int count = 0;
    for (std::int64_t row = 0; row < block.targets;) {
        int rows = rows_together(block.targets - row);
        if (!list_active(block, scales, row, rows, chunk, length, groups[count].list)) {
            rows = 1;
            list_active(block, scales, row, rows, chunk, length, groups[count].list);
        }
        groups[count].row = row;
        groups[count].rows = rows;
        count += groups[count].list.count != 0;
        row += rows;
    }
    return count;
}

void add_chunk(const InterferenceBlock& block, const RelevanceScale* scales, std::int64_t chunk, int length) {
    Group groups[kMaxInterferenceRows];
    const int group_count = make_groups(block, scales, chunk, length, groups);
    if (group_count == 0) {
        return;
    }
    bool needed[kChunk] = {};
    for (int g = 0; g < group_count; ++g) {
        for (int i = 0; i < groups[g].list.count; ++i) {
            needed[groups[g].list.index[i]] = true;
        }
    }
    alignas(64) float packed[kChunk][kPanel];
    for (std::int64_t begin = 0; begin < block.size; begin += kPanel) {
        const std::int64_t width = least(kPanel, block.size - begin);
        const int vectors = static_cast<int>((width + kLanes - 1) / kLanes);
        const float* source[kChunk];
        // A panel read once may stay where it is, unless reading whole vectors would run over its end.
        const bool pack = group_count > 1 || width % kLanes != 0;
        for (int i = 0; i < length; ++i) {
            source[i] = block.context[chunk + i] + begin;
            if (pack && needed[i]) {
                const std::int64_t whole = width / kLanes * kLanes;
                for (std::int64_t n = 0; n < whole; n += kLanes) {
                    store(packed[i] + n, load<f32v>(source[i] + n));
                }
                for (std::int64_t n = whole; n < round_up(width, kLanes); ++n) {
                    packed[i][n] = n < width ? source[i][n] : 0.0f;
                }
                source[i] = packed[i];
            }
        }
        for (int g = 0; g < group_count; ++g) {
            accumulate(groups[g].rows, groups[g].list, source, vectors, block.work + groups[g].row * block.pitch + begin,
                       block.pitch);
        }
    }
}

// max(activation - scale interference, 0) in float64 up to the last rounding; NaN stays NaN.
void subtract(const float* activation, const float* interference, double scale, std::int64_t size, float* causal) {
    constexpr int kStep = kLanes / 2;
    const auto step = [&](const float* from, const float* minus, float* to) {
        const f64v a = __builtin_convertvector(load<f32h>(from), f64v);
        const f64v e = __builtin_convertvector(load<f32h>(minus), f64v);
        const f64v left = a - e * scale;
        const f64v kept = left > 0.0 ? left : left <= 0.0 ? f64v{} : broadcast<f64v>(__builtin_nan(""));
        store(to, __builtin_convertvector(kept, f32h));
    };
    std::int64_t i = 0;
    for (; i + kStep <= size; i += kStep) {
        step(activation + i, interference + i, causal + i);
    }
    if (i < size) {
        const std::size_t bytes = static_cast<std::size_t>(size - i) * sizeof(float);
        float tail[3][kStep] = {};
        std::memcpy(tail[0], activation + i, bytes);
        std::memcpy(tail[1], interference + i, bytes);
        step(tail[0], tail[1], tail[2]);
        std::memcpy(causal + i, tail[2], bytes);
    }
}

void TAM_NAME(estimated_causal_inference_f32)(const InterferenceBlock& block) {
    RelevanceScale scales[kMaxInterferenceRows];
    for (std::int64_t row = 0; row < block.targets; ++row) {
        scales[row] = RelevanceScale::of(block.relevance[row], block.contexts);
        std::memset(block.work + row * block.pitch, 0, static_cast<std::size_t>(block.pitch) * sizeof(float));
    }
    for (std::int64_t chunk = 0; chunk < block.contexts; chunk += kChunk) {
        add_chunk(block, scales, chunk, static_cast<int>(least(kChunk, block.contexts - chunk)));
    }
    for (std::int64_t row = 0; row < block.targets; ++row) {
        // The residual does not depend on the length of E, so E is left undivided and only the scale is corrected.
        const float* const interference = block.work + row * block.pitch;
        const double scale = DotProducts::scale(block.activation[row], interference, block.size);
        subtract(block.activation[row], interference, scale, block.size, block.causal + row * block.causal_stride);
        block.scale[row] = static_cast<float>(scale * scales[row].denominator);
    }
}

}  // namespace
}  // namespace tam::cpu::TAM_ISA
