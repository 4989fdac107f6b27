// Rank Gaussian filter of one tile of a map, for one instruction set. Here is the way for every map; most maps take the
// shorter one of rank_gaussian_filter_plain.inl.
//
// A tile is copied, converted, scaled and padded by reflection into a scratch of pitch width + 2 radius, which is then
// treated as one linear stream: vectors run across row ends, and the windows that straddle two rows are computed and
// dropped. Columns are sorted once and shared by the windows that hold them. Values are sorted as integers: the bits of
// non-negative floats are ordered like the floats, and an involution on the bits extends that to negative ones.

#include <type_traits>
#include <utility>

#include "convert.inl"
#include "rank_gaussian_filter_kernels.h"
#include "scratch.h"

#include "rank_gaussian_filter_arithmetic.inl"
#include "rank_gaussian_filter_pipeline.inl"
#include "rank_gaussian_filter_rows.inl"
#include "rank_gaussian_filter_stream.inl"

namespace tam::cpu::TAM_ISA {
namespace {

// -------------------------------------------------------------------------------------------------------- the tile

// numpy's "reflect" for any distance: the edge is not repeated, and a side of 1 is repeated as it is.
TAM_INLINE std::int64_t reflect(std::int64_t index, std::int64_t size) {
    const std::int64_t last = size - 1;
    const std::int64_t once = index < 0 ? -index : index > last ? 2 * last - index : index;
    if (once >= 0 && once <= last) {
        return once;
    }
    const std::int64_t within = last == 0 ? 0 : once % (2 * last);  // the map is shorter than the window's radius
    const std::int64_t positive = within < 0 ? within + 2 * last : within;
    return positive <= last ? positive : 2 * last - positive;
}

// Scales values and, for General, makes them order keys. -0, which only General meets, becomes 0.
template <bool General>
TAM_INLINE i32v prepared(f32v value, float scale) {
    if constexpr (General) {
        return order_key(bits(value * scale + 0.0f));
    } else {
        return bits(value * scale);
    }
}

// `size` >= kLanes values, loaded by read(i); the last vector overlaps the one before.
template <bool General, class Read>
TAM_INLINE void prepare_apart(const Read& read, float* to, std::int64_t size, float scale) {
    std::int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) {
        store(to + i, prepared<General>(read(i), scale));
    }
    if (i < size) {
        store(to + size - kLanes, prepared<General>(read(size - kLanes), scale));
    }
}

// In place, and to whole vectors beyond `size`.
template <bool General>
TAM_INLINE void prepare_in_place(float* row, std::int64_t size, float scale) {
    for (std::int64_t i = 0; i < size; i += kLanes) {
        store(row + i, prepared<General>(load<f32v>(row + i), scale));
    }
}

template <bool General>
TAM_INLINE void prepare_in_place(double* row, std::int64_t size, double) {
    static_assert(General);  // and scaled after sorting
    for (std::int64_t i = 0; i < size; i += Simd<double>::lanes) {
        store(row + i, order_key(bits(load<f64v>(row + i) + 0.0)));
    }
}

// Fills the padded scratch row by row; write(row, from, count, to) brings in `count` values of a row of the map from column
// `from` on, and may write up to a vector beyond them.
template <class Scalar, class Write>
TAM_INLINE void fill_rows(const FilterMap& map, const FilterTile& tile, std::int64_t radius, std::int64_t pitch,
                          Scalar* padded, const Write& write) {
    const std::int64_t first = most(tile.col_begin - radius, 0);
    const std::int64_t last = least(tile.col_end + radius, map.width);
    const std::int64_t count = last - first;
    const std::int64_t left = first - (tile.col_begin - radius);
    const std::int64_t right = (tile.col_end + radius) - last;
    const bool reflects_once = map.width > radius;
    Scalar* middle = padded + left;
    for (std::int64_t row = tile.row_begin - radius; row < tile.row_end + radius; ++row, middle += pitch) {
        write(reflect(row, map.height), first, count, middle);
        if (reflects_once) {
            for (std::int64_t i = 1; i <= left; ++i) {
                middle[-i] = middle[i];
            }
            for (std::int64_t i = 1; i <= right; ++i) {
                middle[count - 1 + i] = middle[count - 1 - i];
            }
        } else {
            for (std::int64_t i = 1; i <= left; ++i) {
                middle[-i] = middle[reflect(first - i, map.width) - first];
            }
            for (std::int64_t i = 0; i < right; ++i) {
                middle[count + i] = middle[reflect(last + i, map.width) - first];
            }
        }
    }
}

// The common layouts in one pass: rows of at least a vector, contiguous, of values that widen(patterns) makes floats.
template <bool General, class Vector, class Storage, class Widen>
TAM_INLINE void fill_directly(const FilterMap& map, const FilterTile& tile, std::int64_t radius, std::int64_t pitch,
                              float scale, float* padded, const Storage* values, const Widen& widen) {
    fill_rows(map, tile, radius, pitch, padded,
              [=, &map](std::int64_t row, std::int64_t from, std::int64_t count, float* to) {
                  const Storage* const source = values + row * map.row_stride + from;
                  const auto read = [=](std::int64_t i) { return widen(load<Vector>(source + i)); };
                  prepare_apart<General>(read, to, count, scale);
              });
}

template <bool General>
void fill(const FilterMap& map, const FilterTile& tile, std::int64_t radius, std::int64_t pitch, float scale,
          float* padded) {
    const std::uint16_t* const patterns = static_cast<const std::uint16_t*>(map.input);
    if (map.col_stride == 1 && tile.col_end - tile.col_begin >= kLanes) {
        switch (map.dtype) {
            case DType::f32:
                return fill_directly<General, f32v>(map, tile, radius, pitch, scale, padded,
                                                    static_cast<const float*>(map.input), [](f32v value) { return value; });
            case DType::f16:
                return fill_directly<General, u16v>(map, tile, radius, pitch, scale, padded, patterns,
                                                    [](u16v pattern) { return f32_from_f16(pattern); });
            case DType::bf16:
                return fill_directly<General, u16v>(map, tile, radius, pitch, scale, padded, patterns,
                                                    [](u16v pattern) { return f32_from_bf16(pattern); });
            case DType::f64: break;
        }
    }
    fill_rows(map, tile, radius, pitch, padded, [&](std::int64_t row, std::int64_t from, std::int64_t count, float* to) {
        const std::int64_t offset = row * map.row_stride + from * map.col_stride;
        load_row(map.dtype, element(map.input, map.dtype, offset), map.col_stride, count, to);
        prepare_in_place<General>(to, count, scale);
    });
}

template <bool General>
void fill(const FilterMap& map, const FilterTile& tile, std::int64_t radius, std::int64_t pitch, double scale,
          double* padded) {
    fill_rows(map, tile, radius, pitch, padded, [&](std::int64_t row, std::int64_t from, std::int64_t count, double* to) {
        const std::int64_t offset = row * map.row_stride + from * map.col_stride;
        load_row(map.dtype, element(map.input, map.dtype, offset), map.col_stride, count, to);
        prepare_in_place<General>(to, count, scale);
    });
}

// Writes size values through write(i), which stores a vector from i on; a short row through `tail`.
template <class Write, class Tail>
TAM_INLINE void store_vectors(std::int64_t size, const Write& write, const Tail& tail) {
    if (size < kLanes) {
        tail();
        return;
    }
    std::int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) {
        write(i);
    }
    if (i < size) {
        write(size - kLanes);
    }
}

TAM_INLINE void store_row(const FilterMap& map, std::int64_t offset, const float* from, std::int64_t size) {
    void* const to = const_cast<void*>(element(map.output, map.dtype, offset));
    if (map.dtype == DType::f32) {
        float* const values = static_cast<float*>(to);
        store_vectors(
            size, [=](std::int64_t i) { store(values + i, load<f32v>(from + i)); },
            [=] { std::memcpy(values, from, static_cast<std::size_t>(size) * sizeof(float)); });
        return;
    }
    std::uint16_t* const patterns = static_cast<std::uint16_t*>(to);
    if (map.dtype == DType::f16) {
        store_vectors(
            size, [=](std::int64_t i) { store(patterns + i, f16_from_f32(load<f32v>(from + i))); },
            [=] { pack_16bit<Half>(from, size, patterns); });
    } else {
        store_vectors(
            size, [=](std::int64_t i) { store(patterns + i, bf16_from_f32(load<f32v>(from + i))); },
            [=] { pack_16bit<BFloat>(from, size, patterns); });
    }
}

TAM_INLINE void store_row(const FilterMap& map, std::int64_t offset, const double* from, std::int64_t size) {
    if (map.dtype == DType::f64) {
        void* const to = const_cast<void*>(element(map.output, map.dtype, offset));
        std::memcpy(to, from, static_cast<std::size_t>(size) * sizeof(double));
        return;
    }
    for (std::int64_t i = 0; i < size; i += kLanes) {
        const std::int64_t count = least(kLanes, size - i);
        float values[kLanes] = {};
        for (std::int64_t lane = 0; lane < count; ++lane) {
            values[lane] = static_cast<float>(from[i + lane]);
        }
        store_row(map, offset + i, static_cast<const float*>(values), count);
    }
}

template <class Scalar, int K, bool General>
void filter_tile(const FilterMap& map, const FilterPlan& plan, const FilterTile& tile) {
    using S = Stream<Scalar, K, General>;
    const int k = K != 0 ? K : plan.kernel_size;
    const std::int64_t radius = k / 2;
    const std::int64_t width = tile.col_end - tile.col_begin;
    const std::int64_t height = tile.row_end - tile.row_begin;
    const std::int64_t pitch = width + 2 * radius;

    const std::int64_t used = (height + 2 * radius) * pitch;
    // Beyond the used part whole vectors are read: the columns ahead of a block that is rounded up to whole vectors.
    const std::int64_t slack = S::kAhead + 6 * kLanes;
    Scalar* const memory = static_cast<Scalar*>(
        scratch(ScratchSlot::filter, static_cast<std::size_t>(S::kMemory + used + slack) * sizeof(Scalar)));
    Scalar* const padded = memory + S::kMemory;

    const Scalar scale = static_cast<Scalar>(plan.scale);
    fill<General>(map, tile, radius, pitch, scale, padded);
    std::memset(padded + used, 0, static_cast<std::size_t>(slack) * sizeof(Scalar));

    const Scalar half_unscale = static_cast<Scalar>(0.5 * plan.unscale);
    const std::int64_t length = height * pitch - 2 * radius;
    const S stream{plan, scale, S::kPipelined ? 1 : half_unscale, pitch, memory};
    stream.filter_stream(padded, length, InPlace<Scalar>{padded});
    if constexpr (S::kPipelined) {
        for (std::int64_t i = 0; i < length; i += kLanes) {
            store(padded + i, load<f32v>(padded + i) * half_unscale);
        }
    }
    for (std::int64_t row = 0; row < height; ++row) {
        store_row(map, (tile.row_begin + row) * map.width + tile.col_begin, padded + row * pitch, width);
    }
}

}  // namespace
}  // namespace tam::cpu::TAM_ISA

#include "rank_gaussian_filter_plain.inl"

namespace tam::cpu::TAM_ISA {
namespace {

// Kernel size 1: finite values as they are.
template <class Scalar>
void copy_tile(const FilterMap& map, const FilterTile& tile) {
    const std::int64_t width = tile.col_end - tile.col_begin;
    Scalar* const row =
        static_cast<Scalar*>(scratch(ScratchSlot::filter, static_cast<std::size_t>(width + kLanes) * sizeof(Scalar)));
    for (std::int64_t y = tile.row_begin; y < tile.row_end; ++y) {
        load_row(map.dtype, element(map.input, map.dtype, y * map.row_stride + tile.col_begin * map.col_stride),
                 map.col_stride, width, row);
        for (std::int64_t x = 0; x < width; ++x) {
            row[x] = row[x] - row[x] == 0 ? row[x] : static_cast<Scalar>(__builtin_nan(""));
        }
        store_row(map, y * map.width + tile.col_begin, row, width);
    }
}

template <class Scalar, bool General>
void filter_tile_of_size(const FilterMap& map, const FilterPlan& plan, const FilterTile& tile) {
    switch (plan.kernel_size) {
        case 1: return copy_tile<Scalar>(map, tile);
        case 3: return filter_tile<Scalar, 3, General>(map, plan, tile);
        case 5: return filter_tile<Scalar, 5, General>(map, plan, tile);
        case 7: return filter_tile<Scalar, 7, General>(map, plan, tile);
        default: return filter_tile<Scalar, 0, General>(map, plan, tile);
    }
}

// -------------------------------------------------------------------------------------------------------- the scan

constexpr std::int64_t kScanBlock = 1024;

template <class V, class Scalar, class Reduce>
TAM_INLINE Scalar reduced(V lanes, Scalar first, const Reduce& reduce) {
    Scalar values[sizeof(V) / sizeof(Scalar)];
    std::memcpy(values, &lanes, sizeof values);
    for (std::size_t half = sizeof(V) / sizeof(Scalar) / 2; half > 0; half /= 2) {
        for (std::size_t lane = 0; lane < half; ++lane) {
            values[lane] = reduce(values[lane], values[lane + half]);
        }
    }
    return reduce(first, values[0]);
}

// Bits as unsigned integers: a sign, Inf or NaN makes a pattern at least that of infinity. `smallest` holds the smallest
// pattern less 1, so that 0 comes last.
template <class Scalar>
struct ScanBits {
    using Unsigned = std::make_unsigned_t<typename Simd<Scalar>::IntScalar>;
    static constexpr Unsigned kMagnitude = static_cast<Unsigned>(~(Unsigned{1} << (sizeof(Scalar) * 8 - 1)));
    Unsigned largest = 0;
    Unsigned smallest = ~Unsigned{0};

    void add(Unsigned pattern) {
        const Unsigned before = pattern - 1;
        largest = largest < pattern ? pattern : largest;
        smallest = before < smallest ? before : smallest;
    }

    void add_row(const Scalar* row, std::int64_t size) {
        using U = typename Simd<Scalar>::Unsigned;
        constexpr int kStep = Simd<Scalar>::lanes;
        U largest_lanes{};
        U smallest_lanes = ~U{};
        std::int64_t i = 0;
        for (; i + kStep <= size; i += kStep) {
            const U pattern = load<U>(row + i);
            largest_lanes = larger(largest_lanes, pattern);
            smallest_lanes = smaller(smallest_lanes, pattern - 1);
        }
        largest = reduced(largest_lanes, largest, [](Unsigned a, Unsigned b) { return a < b ? b : a; });
        smallest = reduced(smallest_lanes, smallest, [](Unsigned a, Unsigned b) { return a < b ? a : b; });
        for (; i < size; ++i) {
            Unsigned pattern;
            std::memcpy(&pattern, row + i, sizeof pattern);
            add(pattern);
        }
    }

    void add_finite_magnitudes(const Scalar* row, std::int64_t size) {
        for (std::int64_t i = 0; i < size; ++i) {
            Unsigned pattern;
            std::memcpy(&pattern, row + i, sizeof pattern);
            pattern &= kMagnitude;
            if (pattern < Unsigned{Constants<Scalar>::infinity}) {
                add(pattern);
            }
        }
    }

    static double value(Unsigned pattern) {
        Scalar result;
        std::memcpy(&result, &pattern, sizeof result);
        return static_cast<double>(result);
    }
};

template <class Scalar, class Visit>
TAM_INLINE void for_each_block(const FilterMap& map, const FilterTile& tile, const Visit& visit) {
    const bool direct = map.col_stride == 1 && map.dtype == (sizeof(Scalar) == 4 ? DType::f32 : DType::f64);
    const bool whole = map.col_stride == 1 && map.row_stride == map.width && tile.col_end - tile.col_begin == map.width;
    const std::int64_t rows = whole ? 1 : tile.row_end - tile.row_begin;
    const std::int64_t cols = (tile.col_end - tile.col_begin) * (whole ? tile.row_end - tile.row_begin : 1);
    for (std::int64_t row = tile.row_begin; row < tile.row_begin + rows; ++row) {
        const std::int64_t start = row * map.row_stride + tile.col_begin * map.col_stride;
        if (direct) {
            visit(static_cast<const Scalar*>(element(map.input, map.dtype, start)), cols);
            continue;
        }
        Scalar block[kScanBlock];
        for (std::int64_t col = 0; col < cols; col += kScanBlock) {
            const std::int64_t count = least(kScanBlock, cols - col);
            load_row(map.dtype, element(map.input, map.dtype, start + col * map.col_stride), map.col_stride, count, block);
            visit(static_cast<const Scalar*>(block), count);
        }
    }
}

template <class Scalar>
FilterScan scan_tile(const FilterMap& map, const FilterTile& tile) {
    using Bits = ScanBits<Scalar>;
    Bits all;
    for_each_block<Scalar>(map, tile, [&](const Scalar* row, std::int64_t size) { all.add_row(row, size); });
    FilterScan found;
    found.negative_or_special = all.largest >= typename Bits::Unsigned{Constants<Scalar>::infinity};
    if (found.negative_or_special) {
        all = Bits{};
        for_each_block<Scalar>(map, tile,
                               [&](const Scalar* row, std::int64_t size) { all.add_finite_magnitudes(row, size); });
    }
    found.largest = Bits::value(all.largest);
    found.smallest = all.largest == 0 ? 0.0 : Bits::value(all.smallest + 1);
    return found;
}

FilterScan TAM_NAME(rank_gaussian_filter_scan)(const FilterMap& map, const FilterTile& tile) {
    return map.dtype == DType::f64 ? scan_tile<double>(map, tile) : scan_tile<float>(map, tile);
}

void TAM_NAME(rank_gaussian_filter_f32)(const FilterMap& map, const FilterPlan& plan, const FilterTile& tile) {
    if (plan.general) {
        filter_tile_of_size<float, true>(map, plan, tile);
    } else {
        filter_tile_of_size<float, false>(map, plan, tile);
    }
}

// The common case in one pass over the tile; a map's bit is 0 where it is another one, and its output then remains to be
// written.
std::uint32_t TAM_NAME(rank_gaussian_filter_plain)([[maybe_unused]] const FilterMap* maps, [[maybe_unused]] int count,
                                                   [[maybe_unused]] int kernel_size,
                                                   [[maybe_unused]] const FilterTile& tile) {
#if TAM_LANES >= 8
    FilterPlan plan;
    plan.kernel_size = kernel_size;
    switch (kernel_size) {
        case 3: return filter_plain<3>(maps, count, plan, tile);
        case 5: return filter_plain<5>(maps, count, plan, tile);
        case 7: return filter_plain<7>(maps, count, plan, tile);
        default: return 0;
    }
#else
    return 0;
#endif
}

void TAM_NAME(rank_gaussian_filter_f64)(const FilterMap& map, const FilterPlan& plan, const FilterTile& tile) {
    filter_tile_of_size<double, true>(map, plan, tile);
}

}  // namespace
}  // namespace tam::cpu::TAM_ISA
