// Finished maps of target tokens, one block each. The map stays in shared memory, if it fits, from the residual until it is
// filtered.

#include "tam_fast/cuda/finish_maps.h"

#include <algorithm>
#include <limits>

#include "items.h"
#include "platform.h"
#include "rank_gaussian_filter_window.h"
#include "relevance_scale.h"

namespace tam::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kUnitRows = 2;  // that a thread filters at a time, where windows are 3 x 3: one step of filter_strip

// Sums over the positions and over the relevances of a target.
struct Sums {
    double activation_interference = 0.0;
    double interference_interference = 0.0;
    double relevance = 0.0;
    std::uint32_t largest_relevance = 0;

    TAM_DEVICE void add(const Sums& other) {
        activation_interference += other.activation_interference;
        interference_interference += other.interference_interference;
        relevance += other.relevance;
        largest_relevance = max(largest_relevance, other.largest_relevance);
    }
    TAM_DEVICE Sums of_lane(int distance) const {
        Sums other;
        other.activation_interference = __shfl_xor_sync(kWholeWarp, activation_interference, distance);
        other.interference_interference = __shfl_xor_sync(kWholeWarp, interference_interference, distance);
        other.relevance = __shfl_xor_sync(kWholeWarp, relevance, distance);
        other.largest_relevance = __shfl_xor_sync(kWholeWarp, largest_relevance, distance);
        return other;
    }
};

struct Range {
    float low = bits_as_float(kInfinity);
    float high = -bits_as_float(kInfinity);
    std::uint32_t nan = 0;

    TAM_DEVICE void add(float value) {
        low = fminf(low, value);
        high = fmaxf(high, value);
        nan |= value != value ? 1u : 0u;
    }
    TAM_DEVICE void add(const Range& other) {
        low = fminf(low, other.low);
        high = fmaxf(high, other.high);
        nan |= other.nan;
    }
    TAM_DEVICE Range of_lane(int distance) const {
        Range other;
        other.low = __shfl_xor_sync(kWholeWarp, low, distance);
        other.high = __shfl_xor_sync(kWholeWarp, high, distance);
        other.nan = __shfl_xor_sync(kWholeWarp, nan, distance);
        return other;
    }
};

// The block's memory: what the warps found, then the map.
struct BlockMemory {
    Sums sums[kWarps];
    Range ranges[kWarps];
};
constexpr std::size_t kMapOffset = (sizeof(BlockMemory) + 15) / 16 * 16;

// Every thread's value into one, in an order that does not depend on timing. Every thread gets it.
template <class T>
TAM_DEVICE T of_block(T value, T* warps) {
    TAM_UNROLL
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
        value.add(value.of_lane(distance));
    }
    if (threadIdx.x % kWarp == 0) {
        warps[threadIdx.x / kWarp] = value;
    }
    __syncthreads();
    T result = warps[0];
    TAM_UNROLL
    for (int warp = 1; warp < kWarps; ++warp) {
        result.add(warps[warp]);
    }
    return result;
}

TAM_DEVICE const float* row_of(const Rows& rows, std::int64_t i) {
    return rows.data + (rows.rows == nullptr ? i : rows.rows[i]) * rows.row_stride;
}

// max(value, 0); NaN stays NaN.
TAM_DEVICE float rectified(double value) {
    const float rounded = static_cast<float>(value);
    return rounded > 0.0f ? rounded : rounded <= 0.0f ? 0.0f : quiet_nan();
}

// visit(n, max(activation[n] - scale interference[n], 0)) for the thread's share of the positions; no interference: null.
template <class Visit>
TAM_DEVICE void for_residuals(const float* activation, const float* interference, double scale, std::int64_t size,
                              const Visit& visit) {
    if (interference == nullptr) {
        for (std::int64_t n = threadIdx.x; n < size; n += kThreads) {
            visit(n, rectified(static_cast<double>(activation[n])));
        }
        return;
    }
    std::int64_t n = threadIdx.x;
    constexpr int kAhead = 4;
    for (; n + (kAhead - 1) * kThreads < size; n += kAhead * kThreads) {
        float values[kAhead];
        TAM_UNROLL
        for (int i = 0; i < kAhead; ++i) {
            const double e = static_cast<double>(interference[n + i * kThreads]);
            values[i] = rectified(static_cast<double>(activation[n + i * kThreads]) - scale * e);
        }
        TAM_UNROLL
        for (int i = 0; i < kAhead; ++i) {
            visit(n + i * kThreads, values[i]);
        }
    }
    for (; n < size; n += kThreads) {
        visit(n, rectified(static_cast<double>(activation[n]) - scale * static_cast<double>(interference[n])));
    }
}

TAM_DEVICE std::uint8_t uint8_of(float value) {
    return static_cast<std::uint8_t>(fminf(fmaxf(value * 255.0f, 0.0f), 255.0f));  // of NaN 0
}

// A target's finished map.
class FinishedMap {
  public:
    TAM_DEVICE FinishedMap(const AnswerItem& item, std::int64_t target)
        : floats_(item.maps_uint8 ? nullptr : static_cast<float*>(item.maps) + target * item.positions),
          bytes_(item.maps_uint8 ? static_cast<std::uint8_t*>(item.maps) + target * item.positions : nullptr) {}

    TAM_DEVICE void store(std::int64_t at, float value) const {
        if (floats_ != nullptr) {
            floats_[at] = value;
        } else {
            bytes_[at] = uint8_of(value);
        }
    }

    TAM_DEVICE bool is_aligned(std::int64_t at) const {
        const std::uintptr_t address = floats_ != nullptr ? reinterpret_cast<std::uintptr_t>(floats_ + at) / 4
                                                          : reinterpret_cast<std::uintptr_t>(bytes_ + at);
        return address % kStripWidth == 0;
    }
    TAM_DEVICE void store_four(std::int64_t at, const float* values) const {
        if (floats_ != nullptr) {
            *reinterpret_cast<float4*>(floats_ + at) = make_float4(values[0], values[1], values[2], values[3]);
        } else {
            *reinterpret_cast<uchar4*>(bytes_ + at) =
                make_uchar4(uint8_of(values[0]), uint8_of(values[1]), uint8_of(values[2]), uint8_of(values[3]));
        }
    }

  private:
    float* floats_;
    std::uint8_t* bytes_;
};

struct Grid {
    int height;
    int width;
    std::int64_t offset;
};

TAM_DEVICE Grid grid_of(const AnswerItem& item, std::int64_t index) {
    if (item.grids == nullptr) {
        return {static_cast<int>(item.height), static_cast<int>(item.width), index * item.height * item.width};
    }
    const std::int64_t* const row = item.grids + 3 * index;
    return {static_cast<int>(row[0]), static_cast<int>(row[1]), row[2]};
}

// Work on a grid: groups of columns of some rows, the groups fastest.
template <int K>
struct GridUnits {
    static constexpr int kRows = K == 3 ? kUnitRows : 1;
    static constexpr int kColumns = K == 3 ? kStripWidth : K == 0 ? 1 : kPairWidth;
    unsigned columns;
    unsigned count;
    TAM_DEVICE explicit GridUnits(const Grid& grid)
        : columns(static_cast<unsigned>((grid.width + kColumns - 1) / kColumns)),
          count(columns * static_cast<unsigned>((grid.height + kRows - 1) / kRows)) {}
};

// Filters the rows y .. y_end - 1 of the columns from x on. K = 0: of any kernel size.
template <int K>
TAM_DEVICE void filter_unit(const Plane<float>& plane, const Grid& grid, int y, int x, int kernel_size,
                            bool constant_window_nan, const FinishedMap& map) {
    const auto at = [&](int row, int column) { return grid.offset + static_cast<std::int64_t>(row) * grid.width + column; };
    if constexpr (K == 0) {
        map.store(at(y, x), counted_window(plane, y, x, kernel_size, constant_window_nan));
    } else if constexpr (K == 3) {
        const int y_end = min(y + kUnitRows, grid.height);
        const bool whole = grid.width % kStripWidth == 0;
        const bool aligned = whole && reinterpret_cast<std::uintptr_t>(plane.data) % sizeof(float4) == 0;
        const bool store_aligned = whole && map.is_aligned(grid.offset);
        const auto store = [&](int row, const float (&out)[kStripWidth]) {
            if (store_aligned) {
                map.store_four(at(row, x), out);
            } else {
                TAM_UNROLL
                for (int i = 0; i < kStripWidth; ++i) {
                    if (x + i < grid.width) {
                        map.store(at(row, x + i), out[i]);
                    }
                }
            }
        };
        const bool again = aligned ? filter_strip<float, true, false>(plane, y, y_end, x, store)
                                   : filter_strip<float, false, false>(plane, y, y_end, x, store);
        if (again || constant_window_nan) {
            for (int row = y; row < y_end; ++row) {
                for (int column = x; column < min(x + kStripWidth, grid.width); ++column) {
                    map.store(at(row, column), general_window<3>(plane, row, column, constant_window_nan));
                }
            }
        }
    } else {
        float out[kPairWidth];
        const bool again = filter_pair<K>(plane, y, x, out);
        TAM_UNROLL
        for (int i = 0; i < kPairWidth; ++i) {
            if (x + i < grid.width) {
                map.store(at(y, x + i), out[i]);
            }
        }
        if (again || constant_window_nan) {
            for (int column = x; column < min(x + kPairWidth, grid.width); ++column) {
                map.store(at(y, column), general_window<K>(plane, y, column, constant_window_nan));
            }
        }
    }
}

template <int K>
TAM_DEVICE void filter_grids(const AnswerItem& item, const float* values, int kernel_size, bool constant_window_nan,
                             const FinishedMap& map) {
    unsigned unit = threadIdx.x;
    for (std::int64_t index = 0; index < item.grid_count; ++index) {
        const Grid grid = grid_of(item, index);
        const GridUnits<K> units(grid);
        const Plane<float> plane{values + grid.offset, grid.height, grid.width, grid.width, 1};
        for (; unit < units.count; unit += kThreads) {
            const unsigned line = unit / units.columns;
            filter_unit<K>(plane, grid, static_cast<int>(line) * units.kRows,
                           static_cast<int>(unit - line * units.columns) * units.kColumns, kernel_size, constant_window_nan,
                           map);
        }
        unit -= units.count;  // the threads go on where this grid ended
    }
}

// Shared: every map fits shared memory, and accesses need not find out where theirs is.
template <int K, bool Shared, int Capacity>
TAM_KERNEL void __launch_bounds__(kThreads, K == 7 ? 1 : 2)
    finish_maps_kernel(const __grid_constant__ Items<AnswerItem, Capacity> items, int kernel_size, bool constant_window_nan,
                       FinishStage stage, std::int64_t shared_positions) {
    std::int64_t target;
    const AnswerItem& item = items.of_block(blockIdx.x, target);
    BlockMemory& memory = *reinterpret_cast<BlockMemory*>(shared_memory());
    const std::int64_t size = item.positions;
    const float* const activation = row_of(item.activation, target);
    float* const interference = item.interference == nullptr ? nullptr : item.interference + target * size;
    const RelevanceRow relevance = relevance_row(item.relevance.data, item.relevance.row_stride, item.relevance.rows,
                                                 item.context_names, item.target_names, item.lengths, target, item.contexts);

    // Eq. 5: scale = <A, E> / <E, E>, with E undivided.
    Sums sums;
    if (relevance.length > 0) {
        TAM_UNROLL_4
        for (std::int64_t k = threadIdx.x; k < relevance.length; k += kThreads) {
            const float value = relevance[k];
            sums.relevance += static_cast<double>(value);
            sums.largest_relevance = max(sums.largest_relevance, finite_magnitude(value));
        }
        TAM_UNROLL_4
        for (std::int64_t n = threadIdx.x; n < size; n += kThreads) {
            const double a = static_cast<double>(activation[n]);
            const double e = static_cast<double>(interference[n]);
            sums.activation_interference = fma(a, e, sums.activation_interference);
            sums.interference_interference = fma(e, e, sums.interference_interference);
        }
    }
    sums = of_block(sums, memory.sums);
    const double power = sums.interference_interference;
    const double scale = power == 0.0 ? 0.0 : sums.activation_interference / power;
    if (threadIdx.x == 0 && item.scale != nullptr) {
        const double factor = static_cast<double>(relevance_factor(sums.largest_relevance));
        item.scale[target] = static_cast<float>(scale * ((sums.relevance + 1e-8) * factor));
    }

    if (stage == FinishStage::causal) {
        float* const causal = static_cast<float*>(item.maps) + target * size;
        for_residuals(activation, relevance.length > 0 ? interference : nullptr, scale, size,
                      [&](std::int64_t n, float value) { causal[n] = value; });
        return;
    }

    // Eq. 3: one scale for the map and the text.
    float* const work =
        Shared || size <= shared_positions ? reinterpret_cast<float*>(shared_memory() + kMapOffset) : interference;
    std::int64_t text_length = item.text_size;
    if (item.text_lengths != nullptr) {
        const std::int64_t length = item.text_lengths[target];
        text_length = length < 0 ? 0 : length < text_length ? length : text_length;
    }
    const float* const text = text_length > 0 ? row_of(item.text, target) : nullptr;
    Range range;
    for (std::int64_t i = threadIdx.x; i < text_length; i += kThreads) {
        range.add(text[i]);
    }
    for_residuals(activation, relevance.length > 0 ? interference : nullptr, scale, size, [&](std::int64_t n, float value) {
        work[n] = value;
        range.add(value);
    });
    range = of_block(range, memory.ranges);
    const bool flat = range.nan == 0 && !(range.low < range.high);
    if (threadIdx.x == 0 && item.flat != nullptr) {
        item.flat[target] = flat ? 1 : 0;
    }
    const float low = range.nan != 0 ? quiet_nan() : range.low;
    const float unit = range.high - range.low;
    const auto normalised = [&](float value) {
        const float result = (value - low) / unit + 0.0f;  // one zero of both
        return flat ? 0.0f : result == result ? result : quiet_nan();
    };
    if (item.text_out != nullptr) {
        float* const to = item.text_out + target * item.text_size;
        for (std::int64_t i = threadIdx.x; i < item.text_size; i += kThreads) {
            to[i] = i < text_length ? normalised(text[i]) : 0.0f;
        }
    }
    const FinishedMap map(item, target);
    if (flat || range.nan != 0) {
        for (std::int64_t n = threadIdx.x; n < size; n += kThreads) {
            map.store(n, flat ? 0.0f : quiet_nan());
        }
        return;
    }
    TAM_UNROLL_4
    for (std::int64_t n = threadIdx.x; n < size; n += kThreads) {
        work[n] = normalised(work[n]);
    }
    __syncthreads();
    filter_grids<K>(item, work, kernel_size, constant_window_nan, map);
}

constexpr std::int64_t kBytesOfPosition = sizeof(float);

}  // namespace

std::int64_t finish_maps_shared_positions() {
    const std::int64_t bytes = static_cast<std::int64_t>(largest_shared_bytes()) - static_cast<std::int64_t>(kMapOffset);
    return std::max<std::int64_t>(bytes, 0) / kBytesOfPosition;
}

namespace {

template <int K, bool Shared>
cudaError_t launch_of_size(const AnswerItem* items, std::int64_t count, int kernel_size, bool constant_window_nan,
                           FinishStage stage, std::int64_t shared_positions, std::size_t shared_bytes, cudaStream_t stream) {
    return launch_items(
        items, count, [](const AnswerItem& item) { return item.targets; },
        [&](const auto& batch, std::int64_t blocks) {
            constexpr int kCapacity = std::decay_t<decltype(batch)>::kCapacity;
            return launch(&finish_maps_kernel<K, Shared, kCapacity>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads),
                          shared_bytes, stream, batch, kernel_size, constant_window_nan, stage, shared_positions);
        });
}

}  // namespace

cudaError_t launch_finish_maps(const AnswerItem* items, std::int64_t count, int kernel_size, bool constant_window_nan,
                               FinishStage stage, std::int64_t shared_positions, cudaStream_t stream) {
    constexpr std::int64_t kLongest = std::numeric_limits<std::int32_t>::max() / 16;  // a map's indices fit 32 bits
    std::int64_t longest = 0;
    bool shared = true;
    for (std::int64_t i = 0; i < count && stage == FinishStage::maps; ++i) {
        const AnswerItem& item = items[i];
        const bool in_place = item.interference == nullptr || static_cast<void*>(item.interference) == item.maps;
        if (item.targets > 0 && item.positions > 0 &&
            (item.positions > kLongest || (item.positions > shared_positions && in_place))) {
            return cudaErrorInvalidValue;
        }
        longest = item.positions <= shared_positions ? std::max(longest, item.positions) : longest;
        shared = shared && item.positions <= shared_positions;
    }
    const std::size_t shared_bytes = kMapOffset + static_cast<std::size_t>(longest * kBytesOfPosition);
    const auto launch_kernel = [&](auto size) {
        constexpr int kSize = decltype(size)::value;
        return (shared ? launch_of_size<kSize, true> : launch_of_size<kSize, false>)(items, count, kernel_size,
                                                                                     constant_window_nan, stage,
                                                                                     shared_positions, shared_bytes, stream);
    };
    switch (kernel_size) {
        case 3: return launch_kernel(std::integral_constant<int, 3>());
        case 5: return launch_kernel(std::integral_constant<int, 5>());
        case 7: return launch_kernel(std::integral_constant<int, 7>());
        default: return launch_kernel(std::integral_constant<int, 0>());
    }
}

}  // namespace tam::cuda
