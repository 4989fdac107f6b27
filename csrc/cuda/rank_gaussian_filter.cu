// Rank Gaussian filter of maps in global memory. A thread of the 3 x 3 filter slides down a strip of four columns in
// registers; neighbouring threads have neighbouring columns, so that a warp reads and writes whole lines.

#include "tam_fast/cuda/rank_gaussian_filter.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "items.h"
#include "platform.h"
#include "rank_gaussian_filter_window.h"

namespace tam::cuda {
namespace {

constexpr int kThreads = 64;           // small blocks: the multiprocessors finish at about the same time
constexpr int kBlocksOfProcessor = 8;  // leaves 128 registers a thread, which the 3 x 3 filter uses
constexpr int kLongestStrip = 64;

// Maps whose sizes and offsets within a map fit 32 bits.
struct FilterWork {
    const void* input;
    void* output;
    std::int64_t map_stride;
    int height;
    int width;
    int row_stride;
    int col_stride;
    std::uint32_t units;    // of work, one a thread: (map, strip of rows, group of columns), the last one fastest
    std::uint32_t strips;   // of a map
    std::uint32_t columns;  // groups of columns
    Divider by_strips;
    Divider by_columns;
    int strip_rows;
    bool aligned;
};

// What one thread works on.
template <class Storage>
struct FilterUnit {
    Plane<Storage> plane;
    Storage* output;
    int y;
    int x;

    TAM_DEVICE FilterUnit(const FilterWork& work, std::uint32_t unit, int group) {
        const std::uint32_t line = work.by_columns.quotient(unit);
        const std::uint32_t map = work.by_strips.quotient(line);
        x = static_cast<int>(unit - line * work.columns) * group;
        y = static_cast<int>(line - map * work.strips) * work.strip_rows;
        const std::int64_t index = map;
        plane = {static_cast<const Storage*>(work.input) + index * work.map_stride, work.height, work.width, work.row_stride,
                 work.col_stride};
        output = static_cast<Storage*>(work.output) + index * work.height * work.width;
    }
};

TAM_DEVICE void store_four(float* to, const float* values) {
    *reinterpret_cast<float4*>(to) = make_float4(values[0], values[1], values[2], values[3]);
}
template <class Half>
TAM_DEVICE void store_four(Half* to, const float* values) {
    *reinterpret_cast<uint2*>(to) =
        make_uint2(pair_of_floats(values[0], values[1], Half{}).bits, pair_of_floats(values[2], values[3], Half{}).bits);
}

template <class Storage, bool Aligned>
TAM_DEVICE void filter_unit(const FilterUnit<Storage>& unit, int y_end, bool constant_window_nan) {
    const int width = unit.plane.width;
    const bool again =
        filter_strip<Storage, Aligned, true>(unit.plane, unit.y, y_end, unit.x, [&](int y, const float (&out)[kStripWidth]) {
            Storage* const to = unit.output + static_cast<std::int64_t>(y) * width + unit.x;
            if constexpr (Aligned) {
                store_four(to, out);
            } else {
                TAM_UNROLL
                for (int i = 0; i < kStripWidth; ++i) {
                    if (unit.x + i < width) {
                        to[i] = from_float(out[i], Storage{});
                    }
                }
            }
        });
    if (again || constant_window_nan) {
        for (int y = unit.y; y < y_end; ++y) {
            for (int x = unit.x; x < min(unit.x + kStripWidth, width); ++x) {
                unit.output[static_cast<std::int64_t>(y) * width + x] =
                    from_float(general_window<3>(unit.plane, y, x, constant_window_nan), Storage{});
            }
        }
    }
}

template <class Storage, int Capacity>
TAM_KERNEL void __launch_bounds__(kThreads, kBlocksOfProcessor)
    filter_3_kernel(const __grid_constant__ Items<FilterWork, Capacity> items, bool constant_window_nan) {
    std::int64_t block;
    const FilterWork& work = items.of_block(blockIdx.x, block);
    const std::uint32_t index = static_cast<std::uint32_t>(block) * kThreads + threadIdx.x;
    if (index >= work.units) {
        return;
    }
    const FilterUnit<Storage> unit(work, index, kStripWidth);
    const int y_end = min(unit.y + work.strip_rows, work.height);
    if (work.aligned) {
        filter_unit<Storage, true>(unit, y_end, constant_window_nan);
    } else {
        filter_unit<Storage, false>(unit, y_end, constant_window_nan);
    }
}

template <class Storage, int K, int Capacity>
TAM_KERNEL void __launch_bounds__(kThreads, K == 7 ? kBlocksOfProcessor / 2 : kBlocksOfProcessor)
    filter_pair_kernel(const __grid_constant__ Items<FilterWork, Capacity> items, bool constant_window_nan) {
    std::int64_t block;
    const FilterWork& work = items.of_block(blockIdx.x, block);
    const std::uint32_t index = static_cast<std::uint32_t>(block) * kThreads + threadIdx.x;
    if (index >= work.units) {
        return;
    }
    const FilterUnit<Storage> unit(work, index, kPairWidth);
    float out[kPairWidth];
    const bool again = filter_pair<K>(unit.plane, unit.y, unit.x, out);
    Storage* const to = unit.output + static_cast<std::int64_t>(unit.y) * work.width + unit.x;
    TAM_UNROLL
    for (int i = 0; i < kPairWidth; ++i) {
        if (unit.x + i < work.width) {
            to[i] = from_float(out[i], Storage{});
        }
    }
    if (again || constant_window_nan) {
        for (int i = 0; i < min(kPairWidth, work.width - unit.x); ++i) {
            to[i] = from_float(general_window<K>(unit.plane, unit.y, unit.x + i, constant_window_nan), Storage{});
        }
    }
}

template <class Storage, int Capacity>
TAM_KERNEL void __launch_bounds__(kThreads, kBlocksOfProcessor)
    filter_any_kernel(const __grid_constant__ Items<RankGaussianFilterItem, Capacity> items, int kernel_size,
                      bool constant_window_nan) {
    // A block has a part of a row. The number of blocks fits 32 bits, so that no wide division is needed.
    std::int64_t block;
    const RankGaussianFilterItem& item = items.of_block(blockIdx.x, block);
    const std::uint32_t parts = static_cast<std::uint32_t>((item.width + kThreads - 1) / kThreads);
    const std::uint32_t line = static_cast<std::uint32_t>(block) / parts;
    const std::uint32_t map = line / static_cast<std::uint32_t>(item.height);
    const std::int64_t y = line - map * static_cast<std::uint32_t>(item.height);
    const std::int64_t x =
        static_cast<std::int64_t>(static_cast<std::uint32_t>(block) - line * parts) * kThreads + threadIdx.x;
    if (x >= item.width) {
        return;
    }
    const Plane<Storage, std::int64_t> plane{static_cast<const Storage*>(item.input) + std::int64_t{map} * item.map_stride,
                                             item.height, item.width, item.row_stride, item.col_stride};
    static_cast<Storage*>(item.output)[(std::int64_t{map} * item.height + y) * item.width + x] =
        from_float(counted_window(plane, y, x, kernel_size, constant_window_nan), Storage{});
}

// ---------------------------------------------------------------------------------------------------------------- host

std::int64_t divided_up(std::int64_t a, std::int64_t b) {
    return (a + b - 1) / b;
}

std::int64_t bytes_of(DType dtype) {
    return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2;
}

bool fits_32_bits(const RankGaussianFilterItem& item) {
    constexpr std::int64_t kLimit = std::numeric_limits<std::int32_t>::max() / 16;
    return item.height < kLimit && item.width < kLimit && std::abs(item.row_stride) < kLimit &&
           std::abs(item.col_stride) < kLimit / item.width && item.height * divided_up(item.width, kStripWidth) < kLimit;
}

bool is_aligned(const RankGaussianFilterItem& item) {
    const std::uintptr_t bytes = static_cast<std::uintptr_t>(kStripWidth * bytes_of(item.dtype));
    return item.col_stride == 1 && item.width % kStripWidth == 0 && item.row_stride % kStripWidth == 0 &&
           (item.map_stride % kStripWidth == 0 || item.count == 1) &&
           reinterpret_cast<std::uintptr_t>(item.input) % bytes == 0 &&
           reinterpret_cast<std::uintptr_t>(item.output) % bytes == 0;
}

// Rows of a strip: long ones repeat less at their ends, many short ones keep all multiprocessors busy.
int strip_rows_for(const RankGaussianFilterItem& item, int processors) {
    constexpr std::int64_t kRepeatedRows = 4;  // about what a strip's start costs
    const std::int64_t columns = divided_up(item.width, kStripWidth);
    std::int64_t best = 2;
    std::int64_t least_cost = std::numeric_limits<std::int64_t>::max();
    for (std::int64_t strips = divided_up(item.height, kLongestStrip); strips <= divided_up(item.height, 2); ++strips) {
        const std::int64_t rows = divided_up(divided_up(item.height, strips), 2) * 2;
        const std::int64_t blocks = divided_up(item.count * divided_up(item.height, rows) * columns, kThreads);
        const std::int64_t cost = divided_up(blocks, processors) * (rows + kRepeatedRows);
        if (cost < least_cost) {
            least_cost = cost;
            best = rows;
        }
    }
    return static_cast<int>(best);
}

// An item as work whose units are groups of `group` columns of a strip.
void add_work(const RankGaussianFilterItem& item, int group, int strip_rows, std::vector<FilterWork>& works) {
    constexpr std::int64_t kMostUnits = std::int64_t{1} << 30;
    const std::int64_t columns = divided_up(item.width, group);
    const std::int64_t strips = divided_up(item.height, strip_rows);
    const std::int64_t maps_at_once = std::max<std::int64_t>(kMostUnits / (columns * strips), 1);
    for (std::int64_t map = 0; map < item.count; map += maps_at_once) {
        const std::int64_t maps = std::min(maps_at_once, item.count - map);
        FilterWork work;
        work.input = static_cast<const char*>(item.input) + map * item.map_stride * bytes_of(item.dtype);
        work.output = static_cast<char*>(item.output) + map * item.height * item.width * bytes_of(item.dtype);
        work.map_stride = item.map_stride;
        work.height = static_cast<int>(item.height);
        work.width = static_cast<int>(item.width);
        work.row_stride = static_cast<int>(item.row_stride);
        work.col_stride = static_cast<int>(item.col_stride);
        work.units = static_cast<std::uint32_t>(maps * strips * columns);
        work.strips = static_cast<std::uint32_t>(strips);
        work.columns = static_cast<std::uint32_t>(columns);
        work.by_strips = Divider(work.strips);
        work.by_columns = Divider(work.columns);
        work.strip_rows = strip_rows;
        work.aligned = is_aligned(item);
        works.push_back(work);
    }
}

template <class Storage, int K>
cudaError_t launch_works(const std::vector<FilterWork>& works, bool constant_window_nan, cudaStream_t stream) {
    return launch_items(
        works.data(), static_cast<std::int64_t>(works.size()),
        [](const FilterWork& work) { return divided_up(work.units, kThreads); },
        [&](const auto& batch, std::int64_t blocks) {
            constexpr int kCapacity = std::decay_t<decltype(batch)>::kCapacity;
            const dim3 grid(static_cast<unsigned>(blocks));
            if constexpr (K == 3) {
                return launch(&filter_3_kernel<Storage, kCapacity>, grid, dim3(kThreads), 0, stream, batch,
                              constant_window_nan);
            } else {
                return launch(&filter_pair_kernel<Storage, K, kCapacity>, grid, dim3(kThreads), 0, stream, batch,
                              constant_window_nan);
            }
        });
}

template <class Storage>
cudaError_t launch_any(const std::vector<RankGaussianFilterItem>& items, int kernel_size, bool constant_window_nan,
                       cudaStream_t stream) {
    return launch_items(
        items.data(), static_cast<std::int64_t>(items.size()),
        [](const RankGaussianFilterItem& item) { return item.count * item.height * divided_up(item.width, kThreads); },
        [&](const auto& batch, std::int64_t blocks) {
            constexpr int kCapacity = std::decay_t<decltype(batch)>::kCapacity;
            return launch(&filter_any_kernel<Storage, kCapacity>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0,
                          stream, batch, kernel_size, constant_window_nan);
        });
}

// The items of one dtype.
template <class Storage>
cudaError_t launch_dtype(const RankGaussianFilterItem* items, std::int64_t count, DType dtype, int kernel_size,
                         bool constant_window_nan, cudaStream_t stream) {
    constexpr bool kHasNetworks = !std::is_same_v<Storage, double>;
    std::vector<FilterWork> works;
    std::vector<RankGaussianFilterItem> others;
    const int processors = multiprocessors();
    for (std::int64_t i = 0; i < count; ++i) {
        const RankGaussianFilterItem& item = items[i];
        if (item.dtype != dtype || item.count == 0 || item.height == 0 || item.width == 0) {
            continue;
        }
        const bool network = kernel_size == 3 || kernel_size == 5 || kernel_size == 7;
        if (!kHasNetworks || !network || !fits_32_bits(item)) {
            others.push_back(item);
        } else if (kernel_size == 3) {
            add_work(item, kStripWidth, strip_rows_for(item, processors), works);
        } else {
            add_work(item, kPairWidth, 1, works);
        }
    }
    cudaError_t error = cudaSuccess;
    if constexpr (kHasNetworks) {
        switch (kernel_size) {
            case 3: error = launch_works<Storage, 3>(works, constant_window_nan, stream); break;
            case 5: error = launch_works<Storage, 5>(works, constant_window_nan, stream); break;
            case 7: error = launch_works<Storage, 7>(works, constant_window_nan, stream); break;
            default: break;
        }
    }
    return error != cudaSuccess ? error : launch_any<Storage>(others, kernel_size, constant_window_nan, stream);
}

}  // namespace

cudaError_t launch_rank_gaussian_filter(const RankGaussianFilterItem* items, std::int64_t count, int kernel_size,
                                        bool constant_window_nan, cudaStream_t stream) {
    cudaError_t error = launch_dtype<float>(items, count, DType::f32, kernel_size, constant_window_nan, stream);
    if (error == cudaSuccess) {
        error = launch_dtype<__half>(items, count, DType::f16, kernel_size, constant_window_nan, stream);
    }
    if (error == cudaSuccess) {
        error = launch_dtype<__nv_bfloat16>(items, count, DType::bf16, kernel_size, constant_window_nan, stream);
    }
    if (error == cudaSuccess) {
        error = launch_dtype<double>(items, count, DType::f64, kernel_size, constant_window_nan, stream);
    }
    return error;
}

}  // namespace tam::cuda
