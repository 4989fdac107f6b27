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
constexpr int kRowTile = kLanes == 16 ? 8 : 4;
constexpr int kVectorTile = 3;
constexpr int kPanel = 48;  // visual positions worked on at a time: a packed panel takes 12 KB
constexpr int kFloatsPerLine = 16;

// The context tokens of a chunk that matter to a few targets, and the chunk's weights.
struct ActiveList {
    int count;
    std::uint8_t index[kChunk];  // within the chunk
    float weight[kRowTile][kChunk];
};

// sums[row][0..] += sum over the list of weight[row][index] source[index][0..], for Vectors vectors
template <int Rows, int Vectors>
TAM_INLINE void accumulate_tile(const ActiveList& list, const float* const* source, std::int64_t offset, float* sums,
                                std::int64_t pitch) {
    f32v chunk[Rows][Vectors] = {};
    for (int i = 0; i < list.count; ++i) {
        const int k = list.index[i];
        const float* const from = source[k] + offset;
        f32v values[Vectors];
        TAM_UNROLL
        for (int v = 0; v < Vectors; ++v) {
            values[v] = load<f32v>(from + v * kLanes);
        }
        TAM_UNROLL
        for (int row = 0; row < Rows; ++row) {
            const f32v weight = broadcast<f32v>(list.weight[row][k]);
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
    if constexpr (Rows == 1) {
        for (; v + 2 * kRowTile <= vectors; v += 2 * kRowTile) {
            accumulate_tile<Rows, 2 * kRowTile>(list, source, v * kLanes, sums + v * kLanes, pitch);
        }
    }
    for (; v + kVectorTile <= vectors; v += kVectorTile) {
        accumulate_tile<Rows, kVectorTile>(list, source, v * kLanes, sums + v * kLanes, pitch);
    }
    for (; v < vectors; ++v) {
        accumulate_tile<Rows, 1>(list, source, v * kLanes, sums + v * kLanes, pitch);
    }
}

void accumulate(int rows, const ActiveList& list, const float* const* source, int vectors, float* sums, std::int64_t pitch) {
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
        i32v largest_of_lane{};
        f64v partial[kPartialLanes / kHalf] = {};
        const auto add = [&](const float* from) {
            TAM_UNROLL
            for (int i = 0; i < kPartialLanes; i += kLanes) {
                const i32v pattern = load<i32v>(from + i) & 0x7fffffff;
                largest_of_lane = larger(largest_of_lane, pattern < 0x7f800000 ? pattern : i32v{});
            }
            TAM_UNROLL
            for (int i = 0; i < kPartialLanes; i += kHalf) {
                partial[i / kHalf] += widened(load<f32h>(from + i));
            }
        };
        std::int64_t k = 0;
        for (; k + kPartialLanes <= size; k += kPartialLanes) {
            add(relevance + k);
        }
        if (k < size) {
            float tail[kPartialLanes] = {};
            std::memcpy(tail, relevance + k, static_cast<std::size_t>(size - k) * sizeof(float));
            add(tail);
        }
        std::int32_t largest = 0;
        for (int lane = 0; lane < kLanes; ++lane) {
            largest = largest < largest_of_lane[lane] ? largest_of_lane[lane] : largest;
        }
        const std::int32_t opposite = 254 - (largest >> 23);
        const std::int32_t factor_bits = (opposite < 1 ? 1 : opposite) << 23;
        RelevanceScale result;
        std::memcpy(&result.factor, &factor_bits, sizeof result.factor);
        result.denominator = (sum_of_lanes(partial) + 1e-8) * static_cast<double>(result.factor);
        return result;
    }
};

// A few target rows with their list for the current chunk.
struct Group {
    std::int64_t row;
    int rows;
    ActiveList list;
};

// Full groups, and those of 4, 2 and 1 rows that may follow.
constexpr std::int64_t kMaxGroups = kMaxInterferenceRows / kRowTile + 2;

// Lists what the rows of a group take from a chunk.
void list_active(const InterferenceBlock& block, const RelevanceScale* scales, std::int64_t chunk, int length,
                 Group& group) {
    ActiveList& list = group.list;
    std::int32_t active[kChunk] = {};
    for (int r = 0; r < group.rows; ++r) {
        const float* relevance = block.relevance[group.row + r] + chunk;
        float padded[kChunk];
        if (length < kChunk) {
            std::memset(padded, 0, sizeof padded);
            std::memcpy(padded, relevance, static_cast<std::size_t>(length) * sizeof(float));
            relevance = padded;
        }
        for (int i = 0; i < kChunk; i += kLanes) {
            const f32v values = load<f32v>(relevance + i);
            store(list.weight[r] + i, values * scales[group.row + r].factor);
            store(active + i, load<i32v>(active + i) | (values != 0.0f));
        }
    }
    int count = 0;
    for (int i = 0; i < length; ++i) {
        list.index[count] = static_cast<std::uint8_t>(i);
        count -= active[i];
    }
    list.count = count;
}

// Splits the block into groups with their lists, leaving out those that take nothing.
int make_groups(const InterferenceBlock& block, const RelevanceScale* scales, std::int64_t chunk, int length,
                Group* groups) {
    int count = 0;
    for (std::int64_t row = 0; row < block.targets;) {
        groups[count].row = row;
        groups[count].rows = rows_together(block.targets - row);
        row += groups[count].rows;
        list_active(block, scales, chunk, length, groups[count]);
        count += groups[count].list.count != 0;
    }
    return count;
}

// Copies a row of a panel and pads it with zeros.
TAM_INLINE void copy_panel(const float* from, std::int64_t width, float* to) {
    if (width == kPanel) {
        TAM_UNROLL
        for (int n = 0; n < kPanel; n += kLanes) {
            store(to + n, load<f32v>(from + n));
        }
    } else {
        for (std::int64_t n = 0; n < kPanel; ++n) {
            to[n] = n < width ? from[n] : 0.0f;
        }
    }
}

// Adds what a chunk contributes to the targets of some groups.
void add_chunk(const InterferenceBlock& block, std::int64_t chunk, int length, const Group* groups, int group_count) {
    bool needed[kChunk] = {};
    for (int g = 0; g < group_count; ++g) {
        for (int i = 0; i < groups[g].list.count; ++i) {
            needed[groups[g].list.index[i]] = true;
        }
    }
    const std::int64_t whole = block.size / kLanes * kLanes;
    alignas(64) float packed[kChunk][kPanel];
    for (std::int64_t begin = 0, width = 0; begin < block.size; begin += width) {
        // What is read once may stay where it is, unless reading whole vectors would run over its end.
        const bool pack = group_count > 1 || begin == whole;
        width = pack ? least(kPanel, block.size - begin) : whole;
        const int vectors = static_cast<int>((width + kLanes - 1) / kLanes);
        const float* source[kChunk];
        for (int i = 0; i < length; ++i) {
            source[i] = block.context[chunk + i] + begin;
            if (pack && needed[i]) {
                copy_panel(source[i], width, packed[i]);
                source[i] = packed[i];
            }
        }
        // The next panel lies in other cache lines of as many rows, which hardware prefetchers do not see coming.
        const bool last = begin + 2 * kPanel > block.size;
        const std::int64_t next_chunk = last ? chunk + kChunk : chunk;
        const std::int64_t next_begin = last ? 0 : begin + kPanel;
        const bool prefetch = group_count > 1 && block.size >= kPanel;
        const std::int64_t next_rows = prefetch ? least(kChunk, block.contexts - next_chunk) : 0;
        for (int g = 0; g < group_count; ++g) {
            for (std::int64_t i = g * next_rows / group_count; i < (g + 1) * next_rows / group_count; ++i) {
                for (int n = 0; n < kPanel; n += kFloatsPerLine) {
                    __builtin_prefetch(block.context[next_chunk + i] + next_begin + n);
                }
            }
            accumulate(groups[g].rows, groups[g].list, source, vectors, block.work + groups[g].row * block.pitch + begin,
                       block.pitch);
        }
    }
}

// The interference maps, undivided and each times its row's factor. Among targets that are worked on together, NaN and Inf
// of a context map reach those whose relevance is 0 as well.
void interference_maps(const InterferenceBlock& block, const RelevanceScale* scales) {
    for (std::int64_t row = 0; row < block.targets; ++row) {
        std::memset(block.work + row * block.pitch, 0, static_cast<std::size_t>(block.pitch) * sizeof(float));
    }
    Group groups[kMaxGroups];
    for (std::int64_t chunk = 0; chunk < block.contexts; chunk += kChunk) {
        const int length = static_cast<int>(least(kChunk, block.contexts - chunk));
        add_chunk(block, chunk, length, groups, make_groups(block, scales, chunk, length, groups));
    }
}

// max(activation - scale interference, 0) in float64 up to the last rounding; NaN stays NaN.
void subtract(const float* activation, const float* interference, double scale, std::int64_t size, float* causal) {
    const auto step = [&](const float* from, const float* minus, float* to) {
        const f64v a = widened(load<f32h>(from));
        const f64v e = widened(load<f32h>(minus));
        const f64v left = a - e * scale;
        const f64v kept = left > 0.0 ? left : left <= 0.0 ? f64v{} : broadcast<f64v>(__builtin_nan(""));
        store(to, __builtin_convertvector(kept, f32h));
    };
    std::int64_t i = 0;
    for (; i + kHalf <= size; i += kHalf) {
        step(activation + i, interference + i, causal + i);
    }
    if (i < size) {
        const std::size_t bytes = static_cast<std::size_t>(size - i) * sizeof(float);
        float tail[3][kHalf] = {};
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
    }
    interference_maps(block, scales);
    for (std::int64_t row = 0; row < block.targets; ++row) {
        // The residual does not depend on the length of E, so E is left undivided and only the scale is corrected.
        float* const interference = block.work + row * block.pitch;
        double scale = DotProducts::scale(block.activation[row], interference, block.size);
        if (scale != scale && block.targets > 1) {
            // Perhaps it is another target's NaN or Inf. Alone, this one skips all context tokens of relevance 0.
            InterferenceBlock alone = block;
            alone.relevance += row;
            alone.targets = 1;
            alone.work = interference;
            interference_maps(alone, scales + row);
            scale = DotProducts::scale(block.activation[row], interference, block.size);
        }
        subtract(block.activation[row], interference, scale, block.size, block.causal + row * block.causal_stride);
        block.scale[row] = static_cast<float>(scale * scales[row].denominator);
    }
}

}  // namespace
}  // namespace tam::cpu::TAM_ISA
