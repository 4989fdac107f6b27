// Rank Gaussian filter of one tile of a map, for one instruction set.
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

namespace tam::cpu::TAM_ISA {
namespace {

constexpr std::int64_t kStreamLength = 544;  // windows sorted, then weighted, in one go: the sorted columns stay in L1
static_assert(kStreamLength >= kFilterTileWidth + kMaxKernelSize);

// ---------------------------------------------------------------------------------------------------- arithmetic

template <class Scalar>
struct Constants;

template <>
struct Constants<float> {
    static constexpr float half_log2_e = 0.72134752f;
    static constexpr float largest_exponent = 30.0f;  // 2^-30 of a value is lost when added to it
    static constexpr float negligible_exponent = 100.0f;
    static constexpr float smallest_weight = 0x1p-30f;
    static constexpr float smallest_factor = 0x1p-50f;
    static constexpr float smallest_product = 0x1p-60f;  // times the two above: no denormals
    static constexpr float to_integer = 0x1.8p23f;
    static constexpr int mantissa_bits = 23;
    static constexpr std::int32_t infinity = 0x7f800000;
    static constexpr std::int32_t quiet_nan = 0x7fc00000;
};

template <>
struct Constants<double> {
    static constexpr double half_log2_e = 0.72134752044448170;
    static constexpr double largest_exponent = 60.0;
    static constexpr double negligible_exponent = 200.0;
    static constexpr double smallest_weight = 0x1p-60;
    static constexpr double smallest_factor = 0x1p-100;
    static constexpr double smallest_product = 0x1p-120;
    static constexpr double to_integer = 0x1.8p52;
    static constexpr int mantissa_bits = 52;
    static constexpr std::int64_t infinity = 0x7ff0000000000000;
    static constexpr std::int64_t quiet_nan = 0x7ff8000000000000;
};

// 2^-f for f in [-0.5, 0.5].
TAM_INLINE f32v exp2_fraction(f32v f) {
    // Minimax with the constant term fixed at 1; relative error 1.2e-7.
    const f32v f2 = f * f;
    const f32v low = 1.0f + f * -0.69314694f;
    const f32v middle = 0.24022107f + f * -0.055506341f;
    const f32v high = 0.0096758130f + f * -0.0013283886f;
    return low + f2 * (middle + f2 * high);
}

TAM_INLINE f64v exp2_fraction(f64v f) {
    // Taylor terms (-log 2)^i / i!; the first one left out is below 1e-17.
    constexpr double kLog2 = 0.69314718055994530942;
    f64v sum = f64v{} + 1.0;
    TAM_UNROLL
    for (int i = 14; i > 0; --i) {
        sum = 1.0 - sum * (f * (kLog2 / i));
    }
    return sum;
}

// mu^2 / (2 var) / log 2, from the sum and the sum of squares of `count` values, within [0, largest_exponent].
template <class F, class Scalar>
TAM_INLINE F weight_exponent(F sum, F squares, Scalar count) {
    using C = Constants<Scalar>;
    using U = typename Simd<Scalar>::Unsigned;
    using UScalar = decltype(U{}[0] + U{}[0]);
    // One-pass variance: it only cancels where the deviation is small against the mean, and there the weights vanish.
    const F numerator = sum * sum;
    const F exponent = (numerator * C::half_log2_e) / (squares * count - numerator);
    // Negative exponents (rounding of a constant window), NaN (0 / 0) and Inf are all above the bound as unsigned integers.
    UScalar bound;
    const Scalar largest = C::largest_exponent;
    std::memcpy(&bound, &largest, sizeof bound);
    return (F)smaller((U)exponent, U{} + bound);
}

// 2^-exponent
template <class Scalar, class F>
TAM_INLINE F neighbour_weight(F exponent) {
    using C = Constants<Scalar>;
    const F shifted = exponent + C::to_integer;
    const F fraction = exponent - (shifted - C::to_integer);
    return from_bits(bits(exp2_fraction(fraction)) - (bits(shifted) << C::mantissa_bits));
}

// Bounds for floats that are known not to be negative; integer comparison is the faster one where it matters.
template <class Scalar, class F>
TAM_INLINE F at_least(F value, Scalar bound) {
    return from_bits(larger(bits(value), bits(broadcast<F>(bound))));
}

template <class Scalar, class F>
TAM_INLINE F at_most(F value, Scalar bound) {
    return from_bits(smaller(bits(value), bits(broadcast<F>(bound))));
}

template <class V>
TAM_INLINE void compare_exchange(V& low, V& high) {
    const V least_of_both = smaller(low, high);
    high = larger(low, high);
    low = least_of_both;
}

// Order-preserving integer of a float's bits, and back: an involution.
template <class I>
TAM_INLINE I order_key(I pattern) {
    constexpr int kShift = static_cast<int>(sizeof(pattern[0])) * 8 - 1;
    using Scalar = decltype(I{}[0] + I{}[0]);
    constexpr Scalar kMagnitude = static_cast<Scalar>(~(static_cast<std::uint64_t>(1) << kShift));
    return pattern ^ ((pattern >> kShift) & kMagnitude);
}

// ------------------------------------------------------------------------------------------------ sorting networks

template <class Network, std::size_t... I, class V>
TAM_INLINE void sort_line(V* values, std::index_sequence<I...>) {
    (compare_exchange(values[Network::line[I].low], values[Network::line[I].high]), ...);
}

template <class Network, std::size_t... I, class V>
TAM_INLINE void complete(V* values, std::index_sequence<I...>) {
    (compare_exchange(values[Network::completion[I].low], values[Network::completion[I].high]), ...);
}

template <class Network>
using LineSequence = std::make_index_sequence<sizeof(Network::line) / sizeof(Comparator)>;
template <class Network>
using CompletionSequence = std::make_index_sequence<sizeof(Network::completion) / sizeof(Comparator)>;

template <class V>
TAM_INLINE void run_network(V* values, const Comparator* network, std::int64_t size) {
    for (std::int64_t i = 0; i < size; ++i) {
        compare_exchange(values[network[i].low], values[network[i].high]);
    }
}

// ------------------------------------------------------------------------------------------------------ the stream

// K is the kernel size, or 0 for one known at run time. General: values are order keys and may be negative or special.
template <class Scalar, int K, bool General>
struct Stream {
    using F = typename Simd<Scalar>::Float;
    using I = typename Simd<Scalar>::Int;
    using IntScalar = typename Simd<Scalar>::IntScalar;
    using C = Constants<Scalar>;
    static constexpr int kStep = Simd<Scalar>::lanes;
    // Whole vectors are written and read beyond the stream; nor should the rows' addresses repeat modulo 4096.
    static constexpr std::int64_t kColumnPitch = kStreamLength + 64;
    static constexpr int kMaxK = K != 0 ? K : kMaxKernelSize;
    static constexpr int kMaxCentre = kMaxK * kMaxK / 2;
    // float64 sorts unscaled values and scales them afterwards, so that nothing is lost whatever the range.
    static constexpr bool kScaleLate = sizeof(Scalar) == 8;

    const FilterPlan& plan;
    Scalar scale;
    Scalar half_unscale;  // half, because the denominator is: both sides of the median count
    std::int64_t pitch;
    IntScalar* columns;  // sorted columns: kMaxK rows of kColumnPitch
    Scalar* squares;     // their sums of squares

    TAM_INLINE int size(const FilterPlan& filter_plan) { return K != 0 ? K : filter_plan.kernel_size; }

    TAM_INLINE F value_of(I key, [[maybe_unused]] Scalar factor) {
        if constexpr (General) {
            key = order_key(key);
        }
        if constexpr (kScaleLate) {
            return from_bits(key) * factor;
        } else {
            return from_bits(key);
        }
    }

    void sort_columns(const IntScalar* padded, std::int64_t length) const {
        const int k = size(plan);
        for (std::int64_t i = 0; i < length; i += kStep) {
            I column[kMaxK];
            TAM_UNROLL
            for (int row = 0; row < k; ++row) {
                column[row] = load<I>(padded + i + row * pitch);
            }
            F sum{};
            TAM_UNROLL
            for (int row = 0; row < k; ++row) {
                const F value = value_of(column[row], scale);
                sum = row == 0 ? value * value : sum + value * value;
            }
            store(squares + i, sum);
            if constexpr (K != 0) {
                sort_line<WindowNetwork<K>>(column, LineSequence<WindowNetwork<K>>{});
            } else {
                run_network(column, plan.line, plan.line_size);
            }
            TAM_UNROLL
            for (int row = 0; row < k; ++row) {
                store(columns + row * kColumnPitch + i, column[row]);
            }
        }
    }

    // What is left of a window once it is sorted.
    struct Window {
        F median;
        F pairs[kMaxCentre];  // [d - 1]: sum of the values d ranks below and above the median
        F exponent;           // the weight of rank distance 1 is 2^-exponent ...
        F weight;             // ... once find_weight has been here
        F sum;
        I smallest;
        I largest;
    };

    TAM_INLINE void sort_window(const Stream& stream, std::int64_t i, Window& window) {
        const int k = size(stream.plan);
        const int centre = k * k / 2;
        const IntScalar* const from = stream.columns + i;
        I values[kMaxK * kMaxK];
        if constexpr (K != 0) {
            TAM_UNROLL
            for (int row = 0; row < K; ++row) {
                TAM_UNROLL
                for (int col = 0; col < K; ++col) {
                    values[row * K + col] = load<I>(from + row * kColumnPitch + col);
                }
                sort_line<WindowNetwork<K>>(values + row * K, LineSequence<WindowNetwork<K>>{});
            }
            complete<WindowNetwork<K>>(values, CompletionSequence<WindowNetwork<K>>{});
        } else {
            const FilterPlan& network = stream.plan;
            for (int row = 0; row < k; ++row) {
                for (int col = 0; col < k; ++col) {
                    values[network.wire[row * k + col]] = load<I>(from + row * kColumnPitch + col);
                }
            }
            run_network(values, network.merge, network.merge_size);
        }
        window.smallest = values[0];
        window.largest = values[2 * centre];
        window.median = value_of(values[centre], stream.scale);
        TAM_UNROLL
        for (int d = 1; d <= centre; ++d) {
            window.pairs[d - 1] = value_of(values[centre - d], stream.scale) + value_of(values[centre + d], stream.scale);
        }
        F partial[4] = {window.pairs[0], window.pairs[1], window.pairs[2], window.pairs[3]};
        TAM_UNROLL
        for (int d = 4; d < centre; ++d) {
            partial[d % 4] += window.pairs[d];
        }
        window.sum = ((partial[0] + partial[1]) + (partial[2] + partial[3])) + window.median;
        F sum_of_squares = load<F>(stream.squares + i);
        TAM_UNROLL
        for (int col = 1; col < k; ++col) {
            sum_of_squares += load<F>(stream.squares + i + col);
        }
        window.exponent = weight_exponent(window.sum, sum_of_squares, static_cast<Scalar>(k * k));
    }

    TAM_INLINE void find_weight(Window& window) { window.weight = neighbour_weight<Scalar>(window.exponent); }

    TAM_INLINE F blend(const Stream& stream, const Window& window) {
        const F q = window.weight;
        const F* const pairs = window.pairs;
        F weighted;
        F weights;
        if constexpr (K == 3) {
            // q, q^4, q^9, q^16. Below the clamp q^9 and q^16 no longer count, and with it they are no denormals.
            const F q2 = q * q;
            const F q4 = at_least<Scalar>(q2 * q2, C::smallest_weight);
            const F q8 = q4 * q4;
            const F q9 = q8 * q;
            const F q16 = q8 * q8;
            weighted = (q * pairs[0] + q4 * pairs[1]) + (q9 * pairs[2] + q16 * pairs[3]);
            weights = (q + q4) + (q9 + q16);
        } else if constexpr (K == 5) {
            // q^(d^2) by the recurrence (d+1)^2 = d^2 + (2 d + 1), clamped like above.
            constexpr int centre = kMaxCentre;
            const F q2 = at_least<Scalar>(q * q, C::smallest_weight);
            F factor = at_least<Scalar>(q * q2, C::smallest_factor);
            F weight = q;
            weighted = weight * pairs[0];
            weights = weight;
            TAM_UNROLL
            for (int d = 1; d < centre; ++d) {
                weight = at_least<Scalar>(weight * factor, C::smallest_product);
                factor = at_least<Scalar>(factor * q2, C::smallest_factor);
                weighted += weight * pairs[d];
                weights += weight;
            }
        } else {
            // Powers this high would magnify the rounding of a q near 1.
            const int k = size(stream.plan);
            const int centre = k * k / 2;
            weighted = q * pairs[0];
            weights = q;
            for (int d = 2; d <= centre; ++d) {
                const F exponent = at_most<Scalar>(window.exponent * static_cast<Scalar>(d * d), C::negligible_exponent);
                const F weight = neighbour_weight<Scalar>(exponent);
                weighted += weight * pairs[d - 1];
                weights += weight;
            }
        }
        F result = (window.median + weighted) / (weights + Scalar{0.5}) * stream.half_unscale;
        if constexpr (General) {
            const I positive_finite = (bits(window.sum) > 0) & (bits(window.sum) < C::infinity);
            const I special = (bits(window.sum) & C::infinity) == C::infinity;
            result = from_bits((bits(result) & positive_finite) | (special & C::quiet_nan));
            const I constant = (window.smallest == window.largest) & (window.smallest > 0) & (window.smallest < C::infinity);
            if constexpr (kScaleLate) {
                // Scaled, a window of values tiny against the map may have lost bits; a constant one has to stay exact.
                result = from_bits(constant ? order_key(window.smallest) : bits(result));
            }
            if (stream.plan.constant_window_nan) {
                result = from_bits(constant ? I{} + C::quiet_nan : bits(result));
            }
        }
        return result;
    }

    void filter_windows(Scalar* output, std::int64_t length) const {
        const Stream local = *this;
        if constexpr (K == 3) {
            // The stages of three neighbouring vectors are interleaved: one vector alone is a chain of latencies.
            Window weighted;
            Window sorted;
            sort_window(local, 0, weighted);
            find_weight(weighted);
            sort_window(local, kStep, sorted);
            for (std::int64_t i = 0; i < length; i += kStep) {
                store(output + i, blend(local, weighted));
                weighted = sorted;
                find_weight(weighted);
                sort_window(local, i + 2 * kStep, sorted);
            }
        } else {
            for (std::int64_t i = 0; i < length; i += kStep) {
                Window window;
                sort_window(local, i, window);
                find_weight(window);
                store(output + i, blend(local, window));
            }
        }
    }
};

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

// Scales values and, for General, makes them order keys. -0 becomes 0.
template <bool General>
TAM_INLINE i32v prepared(f32v value, float scale) {
    const i32v pattern = bits(value * scale + 0.0f);
    if constexpr (General) {
        return order_key(pattern);
    } else {
        return pattern;
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

// The common layouts in one pass; false for the others.
template <bool General>
TAM_INLINE bool prepare_directly(const FilterMap& map, const void* source, float* to, std::int64_t size, float scale) {
    if (map.col_stride != 1 || size < kLanes) {
        return false;
    }
    const float* const values = static_cast<const float*>(source);
    const std::uint16_t* const patterns = static_cast<const std::uint16_t*>(source);
    switch (map.dtype) {
        case DType::f32:
            prepare_apart<General>([=](std::int64_t i) { return load<f32v>(values + i); }, to, size, scale);
            return true;
        case DType::f16:
            prepare_apart<General>([=](std::int64_t i) { return f32_from_f16(load<u16v>(patterns + i)); }, to, size, scale);
            return true;
        case DType::bf16:
            prepare_apart<General>([=](std::int64_t i) { return f32_from_bf16(load<u16v>(patterns + i)); }, to, size, scale);
            return true;
        case DType::f64: break;
    }
    return false;
}

// Fills one row of the padded scratch. May write up to a vector beyond its end.
template <class Scalar, bool General>
void fill_row(const FilterMap& map, std::int64_t source_row, const FilterTile& tile, std::int64_t radius, Scalar scale,
              Scalar* row) {
    const std::int64_t first = most(tile.col_begin - radius, 0);
    const std::int64_t last = least(tile.col_end + radius, map.width);
    const std::int64_t count = last - first;
    const std::int64_t left = first - (tile.col_begin - radius);
    const std::int64_t right = (tile.col_end + radius) - last;
    const void* const source = element(map.input, map.dtype, source_row * map.row_stride + first * map.col_stride);
    Scalar* const middle = row + left;
    bool done = false;
    if constexpr (sizeof(Scalar) == sizeof(float)) {
        done = prepare_directly<General>(map, source, middle, count, scale);
    }
    if (!done) {
        load_row(map.dtype, source, map.col_stride, count, middle);
        prepare_in_place<General>(middle, count, scale);
    }
    for (std::int64_t i = 1; i <= left; ++i) {
        middle[-i] = middle[reflect(first - i, map.width) - first];
    }
    for (std::int64_t i = 0; i < right; ++i) {
        middle[count + i] = middle[reflect(last + i, map.width) - first];
    }
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
    using IntScalar = typename S::IntScalar;
    const int k = K != 0 ? K : plan.kernel_size;
    const std::int64_t radius = k / 2;
    const std::int64_t width = tile.col_end - tile.col_begin;
    const std::int64_t height = tile.row_end - tile.row_begin;
    const std::int64_t pitch = width + 2 * radius;

    const std::int64_t column_size = k * S::kColumnPitch;
    const std::int64_t used = (height + 2 * radius) * pitch;
    const std::int64_t slack = 2 * kLanes;  // read and written by whole vectors
    const std::int64_t total = column_size + 2 * S::kColumnPitch + used + slack;
    Scalar* const memory =
        static_cast<Scalar*>(scratch(ScratchSlot::filter, static_cast<std::size_t>(total) * sizeof(Scalar)));
    Scalar* const squares = memory + column_size;
    Scalar* const output = squares + S::kColumnPitch;
    Scalar* const padded = output + S::kColumnPitch;

    const Scalar scale = static_cast<Scalar>(plan.scale);
    for (std::int64_t row = 0; row < height + 2 * radius; ++row) {
        const std::int64_t source = reflect(tile.row_begin - radius + row, map.height);
        fill_row<Scalar, General>(map, source, tile, radius, scale, padded + row * pitch);
    }
    std::memset(padded + used, 0, static_cast<std::size_t>(slack) * sizeof(Scalar));

    const S stream{plan,   scale, static_cast<Scalar>(0.5 * plan.unscale), pitch, reinterpret_cast<IntScalar*>(memory),
                   squares};
    const std::int64_t rows_per_stream = most(kStreamLength / pitch, 1);
    for (std::int64_t row = 0; row < height; row += rows_per_stream) {
        const std::int64_t rows = least(rows_per_stream, height - row);
        const std::int64_t length = rows * pitch;
        stream.sort_columns(reinterpret_cast<const IntScalar*>(padded + row * pitch), length);
        stream.filter_windows(output, length - 2 * radius);
        for (std::int64_t i = 0; i < rows; ++i) {
            store_row(map, (tile.row_begin + row + i) * map.width + tile.col_begin, output + i * pitch, width);
        }
    }
}

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

// The bits of a scan. Magnitudes are compared as integers; `smallest` holds magnitude - 1 unsigned, so that 0 comes last.
template <class Scalar>
struct ScanBits {
    using Int = typename Simd<Scalar>::IntScalar;
    using Unsigned = std::make_unsigned_t<Int>;
    static constexpr Int kMagnitude = static_cast<Int>(~(Unsigned{1} << (sizeof(Scalar) * 8 - 1)));
    Int any = 0;
    Int largest = 0;
    Unsigned smallest = ~Unsigned{0};

    void add(Int pattern) {
        const Int magnitude = pattern & kMagnitude;
        const Unsigned before = static_cast<Unsigned>(magnitude) - 1;
        any |= pattern;
        largest = largest < magnitude ? magnitude : largest;
        smallest = before < smallest ? before : smallest;
    }

    void add_row(const Scalar* row, std::int64_t size) {
        using I = typename Simd<Scalar>::Int;
        using U = typename Simd<Scalar>::Unsigned;
        constexpr int kStep = Simd<Scalar>::lanes;
        I any_lanes{};
        I largest_lanes{};
        U smallest_lanes = ~U{};
        std::int64_t i = 0;
        for (; i + kStep <= size; i += kStep) {
            const I pattern = load<I>(row + i);
            const I magnitude = pattern & kMagnitude;
            any_lanes |= pattern;
            largest_lanes = larger(largest_lanes, magnitude);
            smallest_lanes = smaller(smallest_lanes, (U)magnitude - 1);
        }
        for (int lane = 0; lane < kStep; ++lane) {
            any |= any_lanes[lane];
            largest = largest < largest_lanes[lane] ? largest_lanes[lane] : largest;
            smallest = smallest_lanes[lane] < smallest ? smallest_lanes[lane] : smallest;
        }
        for (; i < size; ++i) {
            Int pattern;
            std::memcpy(&pattern, row + i, sizeof pattern);
            add(pattern);
        }
    }

    bool special() const { return largest >= Constants<Scalar>::infinity; }

    static double value(Int magnitude) {
        Scalar result;
        std::memcpy(&result, &magnitude, sizeof result);
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
    ScanBits<Scalar> all;
    for_each_block<Scalar>(map, tile, [&](const Scalar* row, std::int64_t size) { all.add_row(row, size); });
    FilterScan found;
    found.negative_or_special = all.any < 0 || all.special();
    if (all.special()) {
        ScanBits<Scalar> finite;
        for_each_block<Scalar>(map, tile, [&](const Scalar* row, std::int64_t size) {
            for (std::int64_t i = 0; i < size; ++i) {
                typename ScanBits<Scalar>::Int pattern;
                std::memcpy(&pattern, row + i, sizeof pattern);
                if ((pattern & ScanBits<Scalar>::kMagnitude) < Constants<Scalar>::infinity) {
                    finite.add(pattern);
                }
            }
        });
        all = finite;
    }
    found.largest = all.value(all.largest);
    found.smallest = all.largest == 0 ? 0.0 : all.value(static_cast<typename ScanBits<Scalar>::Int>(all.smallest + 1));
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

void TAM_NAME(rank_gaussian_filter_f64)(const FilterMap& map, const FilterPlan& plan, const FilterTile& tile) {
    filter_tile_of_size<double, true>(map, plan, tile);
}

}  // namespace
}  // namespace tam::cpu::TAM_ISA
