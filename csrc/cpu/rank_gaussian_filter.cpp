#include "tam_fast/rank_gaussian_filter.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <vector>

#include "dispatch.h"
#include "fp_environment.h"
#include "parallel.h"
#include "rank_gaussian_filter_kernels.h"

namespace tam::cpu {
namespace {

constexpr const RankGaussianFilterKernels* kKernels[kIsaCount] = TAM_KERNEL_TABLES(rank_gaussian_filter);

constexpr std::int64_t kWholeVectors = 16;  // a multiple of any vector's lanes

// Tiles are what threads share out. Small maps are one tile; their number never depends on the threads.
struct Tiling {
    std::int64_t width = 0;
    std::int64_t height = 0;
    std::int64_t tile_width = 1;
    std::int64_t tile_height = 1;
    std::int64_t across = 0;
    std::int64_t down = 0;

    Tiling(std::int64_t map_height, std::int64_t map_width) : width(map_width), height(map_height) {
        if (width == 0 || height == 0) {
            return;
        }
        across = (width + kFilterTileWidth - 1) / kFilterTileWidth;
        tile_width = (width + across - 1) / across;
        tile_width = across == 1 ? width : (tile_width + kWholeVectors - 1) / kWholeVectors * kWholeVectors;
        across = (width + tile_width - 1) / tile_width;
        const std::int64_t rows = std::max<std::int64_t>(kFilterTilePixels / tile_width, 1);
        down = (height + rows - 1) / rows;
        tile_height = (height + down - 1) / down;
        down = (height + tile_height - 1) / tile_height;
    }

    std::int64_t count() const { return across * down; }

    FilterTile tile(std::int64_t index) const {
        const std::int64_t row = index / across * tile_height;
        const std::int64_t col = index % across * tile_width;
        return {row, std::min(row + tile_height, height), col, std::min(col + tile_width, width)};
    }
};

FilterScan join(const FilterScan& a, const FilterScan& b) {
    FilterScan both;
    both.largest = std::max(a.largest, b.largest);
    both.smallest = a.smallest == 0.0 ? b.smallest : b.smallest == 0.0 ? a.smallest : std::min(a.smallest, b.smallest);
    both.negative_or_special = a.negative_or_special || b.negative_or_special;
    return both;
}

// As ilogb and ldexp, which cost a small map a good part of its time.
int exponent_of(double value) {
    std::uint64_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const int biased = static_cast<int>(bits >> 52 & 0x7ff);
    return biased != 0 ? biased - 1023 : std::ilogb(value);
}

double power_of_two(int power) {  // from -1022 to 1023
    const std::uint64_t bits = static_cast<std::uint64_t>(power + 1023) << 52;
    double value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

void filter_with_plan(const RankGaussianFilterKernels& kernels, const FilterMap& map, const FilterPlan& plan,
                      const FilterTile& tile) {
    (plan.wide ? kernels.filter_f64 : kernels.filter_f32)(map, plan, tile);
}

// One item of the batch with what its tasks share.
struct Batch {
    const RankGaussianFilterParams& params;
    Tiling tiling;
    std::int64_t maps = 1;
    std::int64_t together = 1;  // maps of a single tile that make a task
    // Of every tile, where a map has several.
    std::vector<std::uint8_t> done;
    std::vector<std::uint8_t> left;  // of every map: is any of its tiles not done?
    std::vector<FilterScan> scans;   // where any map is left; a map's first tile gets that of the whole

    explicit Batch(const RankGaussianFilterParams& item) : params(item), tiling(item.height, item.width) {
        for (int dim = 0; dim < item.leading_dims; ++dim) {
            maps *= item.leading_sizes[dim];
        }
        if (tiling.count() > 1) {
            done.resize(static_cast<std::size_t>(tasks()));
        }
    }

    // Results do not depend on it: maps that are filtered together have the bits that each has alone.
    void share_out(int workers) {
        if (tiling.count() == 1) {
            constexpr std::int64_t kTasksPerWorker = 8;
            const std::int64_t share = workers == 1 ? maps : maps / (kTasksPerWorker * workers);
            together = std::clamp<std::int64_t>(share, 1, maps_together(params.height, params.width));
        }
    }

    std::int64_t tasks() const { return (maps + together - 1) / together * tiling.count(); }

    void filter_together(const RankGaussianFilterKernels& kernels, std::int64_t task) const {
        FilterMap some[kMostMaps];
        const std::int64_t first = task * together;
        const int count = static_cast<int>(std::min(maps - first, together));
        for (int i = 0; i < count; ++i) {
            some[i] = map(first + i);
        }
        filter_maps(kernels, some, count, params.kernel_size, params.constant_window_nan);
    }

    bool mark_left_maps() {
        const bool any = std::find(done.begin(), done.end(), 0) != done.end();
        if (any) {
            left.resize(static_cast<std::size_t>(maps));
            scans.resize(done.size());
            for (std::size_t i = 0; i < done.size(); ++i) {
                if (done[i] == 0) {
                    left[i / static_cast<std::size_t>(tiling.count())] = 1;
                }
            }
        }
        return any;
    }

    bool is_left(std::int64_t index) const { return !left.empty() && left[static_cast<std::size_t>(index)] != 0; }

    void join_scans() {
        const std::int64_t tiles = tiling.count();
        for (std::int64_t i = 0; i < static_cast<std::int64_t>(scans.size()); ++i) {
            FilterScan& whole = scans[static_cast<std::size_t>(i - i % tiles)];
            whole = join(whole, scans[static_cast<std::size_t>(i)]);
        }
    }

    FilterMap map(std::int64_t index) const {
        std::int64_t offset = 0;
        std::int64_t rest = index;
        for (int dim = params.leading_dims - 1; dim >= 0; --dim) {
            offset += rest % params.leading_sizes[dim] * params.leading_strides[dim];
            rest /= params.leading_sizes[dim];
        }
        const std::int64_t bytes = params.dtype == DType::f64 ? 8 : params.dtype == DType::f32 ? 4 : 2;
        FilterMap result;
        result.input = static_cast<const char*>(params.input) + offset * bytes;
        result.output = static_cast<char*>(params.output) + index * params.height * params.width * bytes;
        result.dtype = params.dtype;
        result.height = params.height;
        result.width = params.width;
        result.row_stride = params.row_stride;
        result.col_stride = params.col_stride;
        return result;
    }
};

// Which item a global task index falls into: the last whose first task is not after it.
struct TaskIndex {
    std::vector<std::int64_t> first;
    std::int64_t total = 0;

    explicit TaskIndex(const std::vector<Batch>& batches) {
        first.reserve(batches.size());
        for (const Batch& batch : batches) {
            first.push_back(total);
            total += batch.tasks();
        }
    }

    std::size_t item(std::int64_t task) const {
        return static_cast<std::size_t>(std::upper_bound(first.begin(), first.end(), task) - first.begin()) - 1;
    }
};

// Nanoseconds for a pixel on one thread, roughly: only to decide how many threads are worth waking.
double nanoseconds_per_pixel(int kernel_size) {
    return kernel_size <= 3 ? 1.2 : kernel_size == 5 ? 6.0 : 0.02 * std::pow(kernel_size, 4.0);
}

}  // namespace

const RankGaussianFilterKernels& rank_gaussian_filter_kernels() {
    return select_kernels(kKernels);
}

FilterPlan plan_filter(const FilterScan& scan, DType dtype, int kernel_size, bool constant_window_nan) {
    FilterPlan plan;
    plan.kernel_size = kernel_size;
    plan.constant_window_nan = constant_window_nan;
    plan.general = scan.negative_or_special || constant_window_nan;
    plan.wide = dtype == DType::f64;
    if (kernel_size > kLargestFixedNetwork) {
        const GeneratedNetwork& network = generated_network(kernel_size);
        plan.line = network.line.data();
        plan.line_size = static_cast<std::int64_t>(network.line.size());
        plan.merge = network.merge.data();
        plan.merge_size = static_cast<std::int64_t>(network.merge.size());
        plan.wire = network.wire.data();
    }
    if (scan.largest == 0.0) {
        return plan;
    }
    // The largest value is brought to 2^48 (float32): the square of a window's sum then stays below 2^(2 (49 + 8)), and
    // values down to 2^-110 of it have squares that are no denormals.
    constexpr int kTarget = 48, kTargetWide = 100, kMost = 125, kMostWide = 1020, kSmallestNormal = -126;
    const int exponent = exponent_of(scan.largest);
    if (!plan.wide && exponent > kTarget && scan.smallest != 0.0 &&
        exponent_of(scan.smallest) - (exponent - kTarget) < kSmallestNormal) {
        plan.wide = true;  // scaling down would cut bits off the smallest values
    }
    const int power = plan.wide ? std::min(kTargetWide - exponent, kMostWide) : std::min(kTarget - exponent, kMost);
    plan.scale = power_of_two(power);
    plan.unscale = power_of_two(-power);
    return plan;
}

int maps_together(std::int64_t height, std::int64_t width) {
    return static_cast<int>(
        std::clamp<std::int64_t>(kFilterTilePixels / std::max<std::int64_t>(height * width, 1), 1, kMostMaps));
}

void filter_maps(const RankGaussianFilterKernels& kernels, const FilterMap* maps, int count, int kernel_size,
                 bool constant_window_nan) {
    const FilterMap& first = maps[0];
    const Tiling tiling(first.height, first.width);
    if (tiling.count() == 1) {
        const FilterTile whole = tiling.tile(0);
        const std::uint32_t done = constant_window_nan ? 0 : kernels.filter_plain(maps, count, kernel_size, whole);
        for (int i = 0; i < count; ++i) {
            if ((done >> i & 1) == 0) {
                const FilterPlan plan =
                    plan_filter(kernels.scan(maps[i], whole), first.dtype, kernel_size, constant_window_nan);
                filter_with_plan(kernels, maps[i], plan, whole);
            }
        }
        return;
    }
    for (int m = 0; m < count; ++m) {
        const FilterMap& map = maps[m];
        std::optional<FilterPlan> plan;
        for (std::int64_t i = 0; i < tiling.count(); ++i) {
            if (!constant_window_nan && kernels.filter_plain(&map, 1, kernel_size, tiling.tile(i)) != 0) {
                continue;
            }
            if (!plan) {
                plan = plan_filter(kernels.scan(map, {0, map.height, 0, map.width}), map.dtype, kernel_size,
                                   constant_window_nan);
            }
            filter_with_plan(kernels, map, *plan, tiling.tile(i));
        }
    }
}

}  // namespace tam::cpu

namespace tam {

void rank_gaussian_filter(const RankGaussianFilterParams* items, std::int64_t count, int threads) {
    using namespace cpu;
    const RankGaussianFilterKernels& kernels = rank_gaussian_filter_kernels();
    std::vector<Batch> batches;
    batches.reserve(static_cast<std::size_t>(count));
    double cost = 0.0;
    for (std::int64_t i = 0; i < count; ++i) {
        const Batch& batch = batches.emplace_back(items[i]);
        cost += static_cast<double>(batch.maps) * static_cast<double>(items[i].height * items[i].width) *
                nanoseconds_per_pixel(items[i].kernel_size);
    }
    const int workers = worthwhile_threads(cost, threads);
    for (Batch& batch : batches) {
        batch.share_out(workers);
    }
    const TaskIndex index(batches);
    // First what can be filtered in one pass: most maps are done then, and a map of a single tile always is.
    parallel_for(index.total, workers, [&](std::int64_t task) {
        const std::size_t item = index.item(task);
        Batch& batch = batches[item];
        const RankGaussianFilterParams& params = batch.params;
        const std::int64_t local = task - index.first[item];
        const std::int64_t tiles = batch.tiling.count();
        if (tiles == 1) {
            batch.filter_together(kernels, local);
        } else {
            const FilterMap map = batch.map(local / tiles);
            const bool done = !params.constant_window_nan &&
                              kernels.filter_plain(&map, 1, params.kernel_size, batch.tiling.tile(local % tiles)) != 0;
            batch.done[static_cast<std::size_t>(local)] = done ? 1 : 0;
        }
    });
    bool any_left = false;
    for (Batch& batch : batches) {
        any_left = batch.mark_left_maps() || any_left;
    }
    if (!any_left) {
        return;
    }
    // The other tiles need the scan of their whole map.
    parallel_for(index.total, workers, [&](std::int64_t task) {
        const std::size_t item = index.item(task);
        Batch& batch = batches[item];
        const std::int64_t local = task - index.first[item];
        const std::int64_t tiles = batch.tiling.count();
        if (batch.is_left(local / tiles)) {
            batch.scans[static_cast<std::size_t>(local)] =
                kernels.scan(batch.map(local / tiles), batch.tiling.tile(local % tiles));
        }
    });
    for (Batch& batch : batches) {
        batch.join_scans();
    }
    parallel_for(index.total, workers, [&](std::int64_t task) {
        const std::size_t item = index.item(task);
        const Batch& batch = batches[item];
        const RankGaussianFilterParams& params = batch.params;
        const std::int64_t local = task - index.first[item];
        const std::int64_t tiles = batch.tiling.count();
        if (batch.is_left(local / tiles) && batch.done[static_cast<std::size_t>(local)] == 0) {
            const FilterMap map = batch.map(local / tiles);
            const FilterScan& scan = batch.scans[static_cast<std::size_t>(local - local % tiles)];
            filter_with_plan(kernels, map, plan_filter(scan, map.dtype, params.kernel_size, params.constant_window_nan),
                             batch.tiling.tile(local % tiles));
        }
    });
}

}  // namespace tam
