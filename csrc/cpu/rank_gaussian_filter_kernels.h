#pragma once

#include <cstdint>

#include "tam_fast/rank_gaussian_filter.h"
#include "tam_fast/sorting_network.h"

namespace tam::cpu {

// One map of a batch.
struct FilterMap {
    const void* input = nullptr;
    void* output = nullptr;  // contiguous
    DType dtype = DType::f32;
    std::int64_t height = 0;
    std::int64_t width = 0;
    std::int64_t row_stride = 0;
    std::int64_t col_stride = 1;
};

// What a scan finds among the finite values of (a part of) a map.
struct FilterScan {
    double largest = 0.0;              // largest magnitude
    double smallest = 0.0;             // smallest magnitude but zero; 0 where all are zero
    bool negative_or_special = false;  // any sign bit, NaN or Inf
};

// How a map is filtered, settled once from its scan.
struct FilterPlan {
    int kernel_size = 3;
    bool constant_window_nan = false;
    bool wide = false;     // in float64: float64 storage, or a range of values that float32 cannot hold scaled
    bool general = false;  // negative values, NaN or Inf may occur, or constant windows are special
    double scale = 1.0;    // powers of two: into a range where sums of squares neither overflow nor underflow, and back
    double unscale = 1.0;
    const Comparator* line = nullptr;  // generated network, for kernel sizes without one of their own
    const Comparator* merge = nullptr;
    const std::uint16_t* wire = nullptr;
    std::int64_t line_size = 0;
    std::int64_t merge_size = 0;
};

// At most; a tile has one row or no more pixels than that.
inline constexpr std::int64_t kFilterTileWidth = 256;
inline constexpr std::int64_t kFilterTilePixels = 4096;

struct FilterTile {
    std::int64_t row_begin = 0;
    std::int64_t row_end = 0;
    std::int64_t col_begin = 0;
    std::int64_t col_end = 0;
};

inline constexpr int kMostMaps = 8;  // that are filtered together, of no more pixels than a tile

struct RankGaussianFilterKernels {
    const char* isa;
    // Filters in one pass what needs no plan: float32, float16 or bfloat16 values in contiguous rows, none of them negative,
    // special or extreme. The same tile of up to kMostMaps maps that differ in nothing but where they are, and whose outputs
    // follow one another. Bit i tells whether that was so for map i; it has no result otherwise.
    std::uint32_t (*filter_plain)(const FilterMap* maps, int count, int kernel_size, const FilterTile& tile);
    FilterScan (*scan)(const FilterMap& map, const FilterTile& tile);
    void (*filter_f32)(const FilterMap& map, const FilterPlan& plan, const FilterTile& tile);
    void (*filter_f64)(const FilterMap& map, const FilterPlan& plan, const FilterTile& tile);
};

extern const RankGaussianFilterKernels rank_gaussian_filter_serial;
extern const RankGaussianFilterKernels rank_gaussian_filter_avx2;
extern const RankGaussianFilterKernels rank_gaussian_filter_avx512;

const RankGaussianFilterKernels& rank_gaussian_filter_kernels();

FilterPlan plan_filter(const FilterScan& scan, DType dtype, int kernel_size, bool constant_window_nan);

// How many maps of this size should be given to filter_maps at a time.
int maps_together(std::int64_t height, std::int64_t width);

// Scans, plans and filters maps on the calling thread: up to kMostMaps that differ in nothing but where they are, and whose
// outputs follow one another.
void filter_maps(const RankGaussianFilterKernels& kernels, const FilterMap* maps, int count, int kernel_size,
                 bool constant_window_nan);

}  // namespace tam::cpu
