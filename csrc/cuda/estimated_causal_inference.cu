// Interference maps: E_t = factor_t sum_k relevance(t, k) context_k, where factor_t is the power of two of the target's
// relevances (relevance_scale.h).
//
// Many targets: a block makes 32 targets x 32 positions, 64 context tokens at a time, of which each of its four warps takes
// 16; contexts that no target of the block counts are not read. The factor is known only when all relevances have been
// seen. Until then that of the first 64 is used, and the sums are brought to the right one in the end; the block begins anew
// where the two are far apart. Few targets: a matrix-vector product whose blocks make 8 positions each.

#include <cstdint>

#include "items.h"
#include "platform.h"
#include "relevance_scale.h"
#include "tam_fast/cuda/interference.h"

namespace tam::cuda {
namespace {

#ifdef __CUDACC__
#define TAM_NO_UNROLL _Pragma("unroll 1")
#else
#define TAM_NO_UNROLL
#endif

constexpr std::uint32_t kInfinity = 0x7f800000u;

// What the kernels need of an answer.
struct InterferenceItem {
    Rows context;    // (K, N)
    Rows relevance;  // (T, K)
    const std::int64_t* context_names;
    const std::int64_t* target_names;
    const std::int64_t* lengths;
    std::int64_t targets;    // T
    std::int64_t contexts;   // K
    std::int64_t positions;  // N
    float* interference;     // (T, N)
};

TAM_DEVICE RelevanceRow relevance_of(const InterferenceItem& item, std::int64_t target) {
    return relevance_row(item.relevance.data, item.relevance.row_stride, item.relevance.rows, item.context_names,
                         item.target_names, item.lengths, target, item.contexts);
}

TAM_DEVICE const float* row_of(const Rows& view, std::int64_t row) {
    return view.data + (view.rows == nullptr ? row : view.rows[row]) * view.row_stride;
}

inline __host__ __device__ constexpr std::int64_t tiles_of(std::int64_t size, std::int64_t side) {
    return (size + side - 1) / side;
}

// ---- many targets

constexpr int kTargets = 32;    // of a block
constexpr int kPositions = 32;  // of a block
constexpr int kContexts = 64;   // of a stage
constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kContextStages = 3;
constexpr int kRelevanceStages = 2;
constexpr int kRelevancePitch = kTargets + 4;      // quarters of a warp store to different banks
constexpr int kTargetsOfWarp = kTargets / kWarps;  // whose relevances a warp fetches
constexpr int kTargetsOfThread = 8;                // whose interference a thread makes, at
constexpr int kPositionsOfThread = 4;
constexpr int kContextsOfWarp = kContexts / kWarps;  // of a stage
constexpr int kStagesOfPartialSum = 4;               // 64 terms are added up before they join the sum
constexpr int kFarApart = 24;                        // powers of two

struct TileMemory {
    float context[kContextStages][kContexts][kPositions];
    float relevance[kRelevanceStages][kContexts][kRelevancePitch];
    float sums[kWarps][kTargets][kPositions];  // of a warp's contexts
    float factors[kTargets];
    std::uint32_t folded_names[kTargets];
    std::int64_t names[kTargets];
    float corrections[kTargets];
    float largest[kTargets];
    std::int32_t lengths[kTargets];
};

TAM_DEVICE int exponent_of(float power_of_two) {
    return static_cast<int>(float_as_bits(power_of_two) >> 23);
}

// Half of a name, which tells most pairs of names apart.
TAM_DEVICE std::uint32_t folded(std::int64_t name) {
    return static_cast<std::uint32_t>(name) ^ static_cast<std::uint32_t>(name >> 32);
}

// The largest finite magnitude among a target's relevances, for all lanes of a warp.
TAM_DEVICE std::uint32_t largest_of_row(const RelevanceRow& row, int lane) {
    std::uint32_t largest = 0;
    for (std::int64_t k = lane; k < row.length; k += kWarp) {
        const std::uint32_t magnitude = finite_magnitude(row[k]);
        largest = magnitude > largest ? magnitude : largest;
    }
    return __reduce_max_sync(kWholeWarp, largest);
}

// One element of an interference map from those contexts alone whose relevance is not 0.
TAM_DEVICE float interference_of_counted(const InterferenceItem& item, std::int64_t target, std::int64_t position,
                                         float factor) {
    const RelevanceRow row = relevance_of(item, target);
    float sum = 0.0f;
    for (std::int64_t begin = 0; begin < row.length; begin += kContexts) {
        float partial = 0.0f;
        for (std::int64_t k = begin; k < row.length && k < begin + kContexts; ++k) {
            const float relevance = row[k];
            if (relevance != 0.0f) {
                partial = fmaf(relevance * factor, row_of(item.context, k)[position], partial);
            }
        }
        sum += partial;
    }
    return sum;
}

// Aligned: rows of contexts begin at multiples of 16 bytes.
template <bool Aligned, int Capacity>
TAM_KERNEL void __launch_bounds__(kThreads, 3)
    interference_tile_kernel(const __grid_constant__ Items<InterferenceItem, Capacity> items) {
    TileMemory& memory = *reinterpret_cast<TileMemory*>(shared_memory());
    const int thread = static_cast<int>(threadIdx.x);
    const int warp = thread / kWarp;
    const int lane = thread % kWarp;
    std::int64_t tile;
    const InterferenceItem& item = items.of_block(blockIdx.x, tile);
    const std::int64_t position_tiles = tiles_of(item.positions, kPositions);
    // Later targets have longer contexts. They go first.
    const std::int64_t target_begin = (tiles_of(item.targets, kTargets) - 1 - tile / position_tiles) * kTargets;
    const std::int64_t position_begin = tile % position_tiles * kPositions;

    if (thread < kTargets) {
        RelevanceRow row;
        if (target_begin + thread < item.targets) {
            row = relevance_of(item, target_begin + thread);
        }
        memory.names[thread] = row.context_names == nullptr ? 1 : row.target_name;
        memory.folded_names[thread] = folded(memory.names[thread]);
        memory.factors[thread] = 1.0f;
        memory.lengths[thread] = static_cast<std::int32_t>(row.length);
    }
    __syncthreads();
    std::int32_t length = 0;  // the longest
    for (int i = 0; i < kTargets; ++i) {
        length = memory.lengths[i] > length ? memory.lengths[i] : length;
    }
    const std::int32_t stages = (length + kContexts - 1) / kContexts;

    // Relevances that this warp fetches: of some targets, to context tokens `lane` and `lane + 32` of a stage.
    const int first_target = warp * kTargetsOfWarp;
    const float* relevances[kTargetsOfWarp];
    float largest[kTargetsOfWarp];
    std::int32_t shortest = length;
    TAM_UNROLL
    for (int i = 0; i < kTargetsOfWarp; ++i) {
        const std::int32_t of_target = memory.lengths[first_target + i];
        shortest = of_target < shortest ? of_target : shortest;
        relevances[i] = of_target == 0 ? item.relevance.data : row_of(item.relevance, target_begin + first_target + i);
        relevances[i] += lane;
    }

    // Context rows that this thread copies: 16 bytes of every 16th of a stage.
    constexpr int kCopies = kContexts / (kThreads / 8);
    const int copied_context = thread / 8;
    const int copied_position = thread % 8 * 4;
    const std::int64_t positions_left = item.positions - position_begin - copied_position;
    const int floats = static_cast<int>(positions_left < 0 ? 0 : positions_left < 4 ? positions_left : 4);
    const float* const context = item.context.data + (floats > 0 ? position_begin + copied_position : 0);
    std::int64_t rows[kCopies];
    const auto fetch_rows = [&](std::int32_t stage) {
        TAM_UNROLL
        for (int i = 0; i < kCopies; ++i) {
            const std::int32_t k = stage * kContexts + copied_context + i * (kThreads / 8);
            rows[i] = k >= length ? -1 : item.context.rows == nullptr ? k : item.context.rows[k];
        }
    };
    const auto copy_context = [&](int to_stage) {
        TAM_UNROLL
        for (int i = 0; i < kCopies; ++i) {
            float* const to = &memory.context[to_stage][copied_context + i * (kThreads / 8)][copied_position];
            const int count = rows[i] < 0 ? 0 : floats;
            const float* const from = context + (count > 0 ? rows[i] * item.context.row_stride : 0);
            if constexpr (Aligned) {
                copy_async<16>(to, from, 4 * count);
            } else {
                TAM_UNROLL
                for (int j = 0; j < 4; ++j) {
                    copy_async<4>(to + j, j < count ? from + j : context, j < count ? 4 : 0);
                }
            }
        }
        copy_async_commit();
    };

    float fetched[2][kTargetsOfWarp];
    const auto fetch_relevances = [&](std::int32_t stage) {
        const std::int32_t offset = stage * kContexts;
        std::int64_t names[2];
        bool all_count = offset + kContexts <= shortest;
        TAM_UNROLL
        for (int half = 0; half < 2; ++half) {
            const std::int32_t k = offset + half * kWarp + lane;
            // Without names it is one that no target has, nor its half.
            names[half] = item.context_names != nullptr && k < length ? item.context_names[k] : -1;
            TAM_UNROLL
            for (int i = 0; i < kTargetsOfWarp; ++i) {
                all_count = all_count & (folded(names[half]) != memory.folded_names[first_target + i]);
            }
        }
        if (all_count) {
            TAM_UNROLL
            for (int i = 0; i < 2 * kTargetsOfWarp; ++i) {
                fetched[i / kTargetsOfWarp][i % kTargetsOfWarp] =
                    relevances[i % kTargetsOfWarp][offset + i / kTargetsOfWarp * kWarp];
            }
        } else {
            TAM_UNROLL
            for (int i = 0; i < 2 * kTargetsOfWarp; ++i) {
                const int target = first_target + i % kTargetsOfWarp;
                const std::int32_t k = offset + i / kTargetsOfWarp * kWarp;
                float relevance = 0.0f;
                if ((k + lane < memory.lengths[target]) & (names[i / kTargetsOfWarp] != memory.names[target])) {
                    relevance = relevances[i % kTargetsOfWarp][k];
                }
                fetched[i / kTargetsOfWarp][i % kTargetsOfWarp] = relevance;
            }
        }
    };
    const auto store_relevances = [&](int to_stage) {
        TAM_UNROLL
        for (int half = 0; half < 2; ++half) {
            float scaled[kTargetsOfWarp];
            TAM_UNROLL
            for (int i = 0; i < kTargetsOfWarp; ++i) {
                largest[i] = fmaxf(largest[i], fabsf(fetched[half][i]));  // of two, NaN is not the larger
                scaled[i] = fetched[half][i] * memory.factors[first_target + i];
            }
            float* const to = &memory.relevance[to_stage][half * kWarp + lane][first_target];
            *reinterpret_cast<float4*>(to) = make_float4(scaled[0], scaled[1], scaled[2], scaled[3]);
            *reinterpret_cast<float4*>(to + 4) = make_float4(scaled[4], scaled[5], scaled[6], scaled[7]);
        }
    };
    static_assert(kTargetsOfWarp == 8, "two stores of four");

    const int target_of_thread = lane / 8 * kTargetsOfThread;
    const int position_of_thread = lane % 8 * kPositionsOfThread;
    float partial[kTargetsOfThread][kPositionsOfThread];
    float4* const sums = reinterpret_cast<float4*>(&memory.sums[warp][target_of_thread][position_of_thread]);
    const auto add_partial = [&](bool first) {
        TAM_UNROLL
        for (int i = 0; i < kTargetsOfThread; ++i) {
            float4& sum = sums[i * (kPositions / 4)];
            const float4 before = first ? make_float4(0.0f, 0.0f, 0.0f, 0.0f) : sum;
            sum = make_float4(before.x + partial[i][0], before.y + partial[i][1], before.z + partial[i][2],
                              before.w + partial[i][3]);
            TAM_UNROLL
            for (int j = 0; j < kPositionsOfThread; ++j) {
                partial[i][j] = 0.0f;
            }
        }
    };

    for (bool again = false;;) {
        TAM_UNROLL
        for (int i = 0; i < kTargetsOfWarp; ++i) {
            largest[i] = 0.0f;
        }
        TAM_UNROLL
        for (int i = 0; i < kTargetsOfThread * kPositionsOfThread; ++i) {
            partial[i / kPositionsOfThread][i % kPositionsOfThread] = 0.0f;
        }
        fetch_rows(0);
        copy_context(0);
        fetch_rows(1);
        copy_context(1);
        fetch_rows(2);
        fetch_relevances(0);
        if (!again) {
            TAM_UNROLL
            for (int i = 0; i < kTargetsOfWarp; ++i) {
                const std::uint32_t first = finite_magnitude(fetched[0][i]);
                const std::uint32_t second = finite_magnitude(fetched[1][i]);
                const std::uint32_t of_stage = __reduce_max_sync(kWholeWarp, first > second ? first : second);
                if (lane == 0 && of_stage != 0) {
                    memory.factors[first_target + i] = relevance_factor(of_stage);
                }
            }
            __syncwarp();
        }
        store_relevances(0);
        fetch_relevances(1);
        int context_stage = 0;
        for (std::int32_t stage = 0; stage < stages; ++stage) {
            copy_async_wait<1>();
            __syncthreads();
            copy_context(context_stage == 0 ? 2 : context_stage - 1);
            fetch_rows(stage + 3);
            const float (*const relevance)[kRelevancePitch] = memory.relevance[stage % 2] + warp * kContextsOfWarp;
            const float (*const values)[kPositions] = memory.context[context_stage] + warp * kContextsOfWarp;
            TAM_UNROLL
            for (int k = 0; k < kContextsOfWarp; ++k) {
                const float4 low = *reinterpret_cast<const float4*>(&relevance[k][target_of_thread]);
                const float4 high = *reinterpret_cast<const float4*>(&relevance[k][target_of_thread + 4]);
                const float4 four = *reinterpret_cast<const float4*>(&values[k][position_of_thread]);
                const float weights[kTargetsOfThread] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
                const float of_context[kPositionsOfThread] = {four.x, four.y, four.z, four.w};
                TAM_UNROLL
                for (int i = 0; i < kTargetsOfThread * kPositionsOfThread; ++i) {
                    float& sum = partial[i / kPositionsOfThread][i % kPositionsOfThread];
                    sum = fmaf(weights[i / kPositionsOfThread], of_context[i % kPositionsOfThread], sum);
                }
            }
            if (stage % kStagesOfPartialSum == kStagesOfPartialSum - 1) {
                add_partial(stage < kStagesOfPartialSum);
            }
            store_relevances((stage + 1) % 2);
            fetch_relevances(stage + 2);
            context_stage = context_stage == kContextStages - 1 ? 0 : context_stage + 1;
        }
        add_partial(stages < kStagesOfPartialSum);
        copy_async_wait<0>();

        TAM_UNROLL
        for (int i = 0; i < kTargetsOfWarp; ++i) {
            const std::uint32_t of_row = __reduce_max_sync(kWholeWarp, float_as_bits(largest[i]));
            if (lane == 0) {
                memory.largest[first_target + i] = bits_as_float(of_row);
            }
        }
        __syncwarp();
        bool far = false;
        TAM_NO_UNROLL
        for (int target = first_target; target < first_target + kTargetsOfWarp; ++target) {
            std::uint32_t of_row = float_as_bits(memory.largest[target]);
            if (of_row >= kInfinity) {
                of_row = largest_of_row(relevance_of(item, target_begin + target), lane);
            }
            const float used = memory.factors[target];
            const float factor = of_row == 0 ? used : relevance_factor(of_row);
            const int steps = exponent_of(factor) - exponent_of(used);
            far = far || steps > kFarApart || steps < -kFarApart;
            __syncwarp();
            if (lane == 0) {
                memory.factors[target] = factor;
                // Between powers of two that are near each other; of no use otherwise.
                memory.corrections[target] = bits_as_float(static_cast<std::uint32_t>(steps + 127) << 23);
            }
        }
        again = __syncthreads_or(far) != 0;
        if (!again) {
            break;
        }
    }

    const std::int64_t position = position_begin + lane;
    TAM_NO_UNROLL
    for (int target = warp; target < kTargets; target += kWarps) {
        float sum = (memory.sums[0][target][lane] + memory.sums[1][target][lane]) +
                    (memory.sums[2][target][lane] + memory.sums[3][target][lane]);
        sum *= memory.corrections[target];
        if (target_begin + target < item.targets && position < item.positions) {
            if (!(fabsf(sum) < bits_as_float(kInfinity))) {
                // Perhaps it is NaN or Inf of a context that does not count.
                sum = interference_of_counted(item, target_begin + target, position, memory.factors[target]);
            }
            item.interference[(target_begin + target) * item.positions + position] = sum;
        }
    }
}

// ---- few targets

constexpr int kFewTargets = 4;
constexpr int kFewPositions = 8;  // of a block: what one transaction of 32 bytes brings
constexpr int kFewWarps = 16;
constexpr int kFewThreads = kFewWarps * kWarp;
constexpr int kFewContexts = 1024;  // whose relevances are held at a time
constexpr int kRowsAtOnce = kFewThreads / kFewPositions;
constexpr int kFewUnroll = 8;

struct FewMemory {
    float4 relevances[kFewContexts];
    std::int64_t offsets[kFewContexts];  // of the contexts' rows
    float sums[kFewWarps][kFewTargets][kFewPositions];
    std::uint32_t largest[kFewWarps][kFewTargets];
};

template <int Capacity>
TAM_KERNEL void __launch_bounds__(kFewThreads)
    interference_few_kernel(const __grid_constant__ Items<InterferenceItem, Capacity> items) {
    FewMemory& memory = *reinterpret_cast<FewMemory*>(shared_memory());
    const int thread = static_cast<int>(threadIdx.x);
    const int warp = thread / kWarp;
    const int lane = thread % kWarp;
    std::int64_t tile;
    const InterferenceItem& item = items.of_block(blockIdx.x, tile);
    const std::int64_t position_begin = tile * kFewPositions;

    RelevanceRow rows[kFewTargets];
    std::int64_t length = 0;  // the longest
    TAM_UNROLL
    for (int i = 0; i < kFewTargets; ++i) {
        if (i < item.targets) {
            rows[i] = relevance_of(item, i);
        }
        length = rows[i].length > length ? rows[i].length : length;
    }
    const auto fetch = [&](std::int64_t k, float (&values)[kFewTargets]) {
        TAM_UNROLL
        for (int i = 0; i < kFewTargets; ++i) {
            values[i] = rows[i][k];
        }
    };
    const auto hold = [&](std::int64_t k, const float (&values)[kFewTargets]) {
        memory.relevances[k % kFewContexts] = make_float4(values[0], values[1], values[2], values[3]);
        memory.offsets[k % kFewContexts] =
            (item.context.rows == nullptr ? k : item.context.rows[k]) * item.context.row_stride;
    };

    std::uint32_t largest[kFewTargets] = {};
    for (std::int64_t k = thread; k < length; k += kFewThreads) {
        float values[kFewTargets];
        fetch(k, values);
        TAM_UNROLL
        for (int i = 0; i < kFewTargets; ++i) {
            const std::uint32_t magnitude = finite_magnitude(values[i]);
            largest[i] = magnitude > largest[i] ? magnitude : largest[i];
        }
        if (k < kFewContexts) {
            hold(k, values);
        }
    }
    TAM_UNROLL
    for (int i = 0; i < kFewTargets; ++i) {
        largest[i] = __reduce_max_sync(kWholeWarp, largest[i]);
        if (lane == 0) {
            memory.largest[warp][i] = largest[i];
        }
    }
    __syncthreads();
    float factors[kFewTargets];
    TAM_UNROLL
    for (int i = 0; i < kFewTargets; ++i) {
        factors[i] = relevance_factor(__reduce_max_sync(kWholeWarp, memory.largest[lane % kFewWarps][i]));
    }

    const std::int64_t position = position_begin + lane % kFewPositions;
    const float* const context = item.context.data + position;
    const bool inside = position < item.positions;
    float sums[kFewTargets] = {};
    for (std::int64_t begin = 0; begin < length; begin += kFewContexts) {
        if (begin > 0) {
            __syncthreads();
            for (std::int64_t k = begin + thread; k < length && k < begin + kFewContexts; k += kFewThreads) {
                float values[kFewTargets];
                fetch(k, values);
                hold(k, values);
            }
            __syncthreads();
        }
        const int held = static_cast<int>(length - begin < kFewContexts ? length - begin : kFewContexts);
        for (int first = warp * (kWarp / kFewPositions) + lane / kFewPositions; first < held;
             first += kFewUnroll * kRowsAtOnce) {
            float values[kFewUnroll];
            TAM_UNROLL
            for (int i = 0; i < kFewUnroll; ++i) {
                const int k = first + i * kRowsAtOnce;
                values[i] = inside && k < held ? context[memory.offsets[k]] : 0.0f;
            }
            TAM_UNROLL
            for (int i = 0; i < kFewUnroll; ++i) {
                const int k = first + i * kRowsAtOnce;
                const float4 four = k < held ? memory.relevances[k] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                const float relevances[kFewTargets] = {four.x, four.y, four.z, four.w};
                TAM_UNROLL
                for (int j = 0; j < kFewTargets; ++j) {
                    const float sum = fmaf(relevances[j] * factors[j], values[i], sums[j]);
                    sums[j] = relevances[j] == 0.0f ? sums[j] : sum;
                }
            }
        }
    }
    TAM_UNROLL
    for (int i = 0; i < kFewTargets; ++i) {
        TAM_UNROLL
        for (int step = kFewPositions; step < kWarp; step *= 2) {
            sums[i] += __shfl_xor_sync(kWholeWarp, sums[i], step);
        }
        if (lane < kFewPositions) {
            memory.sums[warp][i][lane] = sums[i];
        }
    }
    __syncthreads();
    const int target = thread / kFewPositions;
    if (target < item.targets && target < kFewTargets && inside) {
        float sum = 0.0f;
        for (int i = 0; i < kFewWarps; ++i) {
            sum += memory.sums[i][target][lane % kFewPositions];
        }
        item.interference[target * item.positions + position] = sum;
    }
}

}  // namespace

cudaError_t launch_interference(const AnswerItem* answers, std::int64_t count, cudaStream_t stream) {
    for (std::int64_t begin = 0; begin < count; begin += kMostItems) {
        const std::int64_t size = count - begin < kMostItems ? count - begin : kMostItems;
        InterferenceItem items[kMostItems];
        bool few = true;
        bool aligned = true;
        for (std::int64_t i = 0; i < size; ++i) {
            const AnswerItem& answer = answers[begin + i];
            items[i] = {answer.context, answer.relevance, answer.context_names, answer.target_names, answer.lengths,
                        answer.targets, answer.contexts,  answer.positions,     answer.interference};
            few = few && answer.targets <= kFewTargets;
            aligned = aligned && reinterpret_cast<std::uintptr_t>(answer.context.data) % 16 == 0 &&
                      answer.context.row_stride % 4 == 0;
        }
        const auto blocks = [&](const InterferenceItem& item) {
            return item.targets == 0 || item.contexts == 0 ? 0
                   : few ? tiles_of(item.positions, kFewPositions)
                         : tiles_of(item.positions, kPositions) * tiles_of(item.targets, kTargets);
        };
        const auto send = [&](const auto& batch, std::int64_t total) {
            constexpr int kCapacity = sizeof batch.item / sizeof batch.item[0];
            const dim3 grid(static_cast<unsigned>(total));
            if (few) {
                return launch(interference_few_kernel<kCapacity>, grid, dim3(kFewThreads), sizeof(FewMemory), stream, batch);
            }
            return launch(aligned ? interference_tile_kernel<true, kCapacity> : interference_tile_kernel<false, kCapacity>,
                          grid, dim3(kThreads), sizeof(TileMemory), stream, batch);
        };
        const cudaError_t error = launch_items(items, size, blocks, send);
        if (error != cudaSuccess) {
            return error;
        }
    }
    return cudaSuccess;
}

}  // namespace tam::cuda
