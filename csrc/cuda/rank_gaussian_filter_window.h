#pragma once

// Rank Gaussian filter: the arithmetic of windows in registers.
//
// Windows whose sums stay well inside float32's range, of values that are not negative, take the short way: sorting networks
// and two approximate reciprocals, without a test in between. What each thread has seen says afterwards whether that was
// allowed; the windows where it was not are made again, scaled by a power of two and with every special case.

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "platform.h"
#include "tam_fast/sorting_network.h"

namespace tam::cuda {

// ------------------------------------------------------------------------------------------------------------- storage

// A map in memory, in elements. Offsets within a map fit 32 bits unless Index is wider.
template <class Storage, class Index = int>
struct Plane {
    const Storage* data;
    Index height;
    Index width;
    Index row_stride;
    Index col_stride;
};

TAM_DEVICE float to_float(float x) {
    return x;
}
TAM_DEVICE float to_float(__half x) {
    return __half2float(x);
}
TAM_DEVICE float to_float(__nv_bfloat16 x) {
    return __bfloat162float(x);
}
TAM_DEVICE float from_float(float x, float) {
    return x;
}
TAM_DEVICE __half from_float(float x, __half) {
    return __float2half_rn(x);
}
TAM_DEVICE __nv_bfloat16 from_float(float x, __nv_bfloat16) {
    return __float2bfloat16_rn(x);
}

TAM_DEVICE double from_float(double x, double) {
    return x;
}

// numpy's "reflect" for any distance: the edge is not repeated, and a side of 1 is repeated as it is.
template <class Index>
TAM_DEVICE Index reflected(Index index, Index size) {
    const Index last = size - 1;
    while (index < 0 || index > last) {
        index = last == 0 ? 0 : index < 0 ? -index : 2 * last - index;
    }
    return index;
}

// The same for distances of at most 1 beyond an edge; anything farther gives some index of the map.
TAM_DEVICE int reflected_once(int index, int size) {
    const int at = abs(index);
    return max(min(at, 2 * (size - 1) - at), 0);
}

// ------------------------------------------------------------------------------------------------------------- sorting

TAM_DEVICE float smaller(float a, float b) {
    return fminf(a, b);
}
TAM_DEVICE float larger(float a, float b) {
    return fmaxf(a, b);
}

// Two half values side by side in a register.
template <class Half>
struct Pair {
    std::uint32_t bits;
};

TAM_DEVICE __half2 lanes_of(Pair<__half> pair) {
    __half2 lanes;
    memcpy(&lanes, &pair, sizeof pair);
    return lanes;
}
TAM_DEVICE __nv_bfloat162 lanes_of(Pair<__nv_bfloat16> pair) {
    __nv_bfloat162 lanes;
    memcpy(&lanes, &pair, sizeof pair);
    return lanes;
}
template <class Half, class Lanes>
TAM_DEVICE Pair<Half> pair_of(const Lanes& lanes) {
    Pair<Half> pair;
    static_assert(sizeof pair == sizeof lanes);
    memcpy(&pair, &lanes, sizeof pair);
    return pair;
}

TAM_DEVICE float2 floats_of(Pair<__half> pair) {
    return __half22float2(lanes_of(pair));
}
TAM_DEVICE float2 floats_of(Pair<__nv_bfloat16> pair) {
    return make_float2(bits_as_float(pair.bits << 16), bits_as_float(pair.bits & 0xffff0000u));
}
TAM_DEVICE Pair<__half> pair_of_floats(float a, float b, __half) {
    return pair_of<__half>(__floats2half2_rn(a, b));
}
TAM_DEVICE Pair<__nv_bfloat16> pair_of_floats(float a, float b, __nv_bfloat16) {
    return pair_of<__nv_bfloat16>(__floats2bfloat162_rn(a, b));
}

template <class Half>
TAM_DEVICE Pair<Half> smaller(Pair<Half> a, Pair<Half> b) {
    return pair_of<Half>(__hmin2(lanes_of(a), lanes_of(b)));
}
template <class Half>
TAM_DEVICE Pair<Half> larger(Pair<Half> a, Pair<Half> b) {
    return pair_of<Half>(__hmax2(lanes_of(a), lanes_of(b)));
}

template <class V>
TAM_DEVICE void compare_exchange(V& low, V& high) {
    const V least_of_both = smaller(low, high);
    high = larger(low, high);
    low = least_of_both;
}

template <class Network, std::size_t... I, class V>
TAM_DEVICE void sort_line(V* values, std::index_sequence<I...>) {
    (compare_exchange(values[std::integral_constant<int, Network::line[I].low>::value],
                      values[std::integral_constant<int, Network::line[I].high>::value]),
     ...);
}

template <class Network, std::size_t... I, class V>
TAM_DEVICE void complete(V* values, std::index_sequence<I...>) {
    (compare_exchange(values[std::integral_constant<int, Network::completion[I].low>::value],
                      values[std::integral_constant<int, Network::completion[I].high>::value]),
     ...);
}

template <int K>
TAM_DEVICE void sort_line(float* values) {
    using Network = WindowNetwork<K>;
    sort_line<Network>(values, std::make_index_sequence<sizeof(Network::line) / sizeof(Comparator)>());
}

// Ascending order of K x K values whose rows and columns are sorted.
template <int K, class V>
TAM_DEVICE void complete(V* values) {
    using Network = WindowNetwork<K>;
    complete<Network>(values, std::make_index_sequence<sizeof(Network::completion) / sizeof(Comparator)>());
}

// Two values in order, and what becomes of them when a third one joins: shared by two windows.
template <class V>
struct Ordered2 {
    V low, high;
    TAM_DEVICE static Ordered2 of(V a, V b) { return {smaller(a, b), larger(a, b)}; }
};
template <class V>
struct Ordered3 {
    V low, mid, high;
    TAM_DEVICE static Ordered3 of(const Ordered2<V>& two, V one) {
        return {smaller(one, two.low), larger(two.low, smaller(one, two.high)), larger(one, two.high)};
    }
};

// ---------------------------------------------------------------------------------------------------------- arithmetic

constexpr float kHalfLog2E = 0.72134752f;

// The weighted mean of a window from its sorted values, their sum and the sum of their squares (Eq. 7). The sums of squares
// must neither overflow nor underflow; a window of zeros, also one of rounding errors, is fine.
template <int Count>
TAM_DEVICE float weighted_mean(const float* sorted, float sum, float squares) {
    constexpr int kMiddle = Count / 2;
    // One-pass variance: it only cancels where the deviation is small against the mean, and there the weights vanish. The
    // smallest denormal makes 0 / 0, of a sum whose square underflows as well, an infinite exponent: the median.
    const float square = fmaf(sum, sum, 0x1p-149f);
    const float deviation = fmaf(static_cast<float>(Count), squares, -square);
    const float exponent = fabsf(square * reciprocal_approximate(deviation) * kHalfLog2E);
    float numerator = sorted[kMiddle];
    float weights = 0.0f;
    if constexpr (kMiddle == 4) {
        const float q = exp2_approximate(-exponent);
        const float q2 = q * q;
        const float q4 = q2 * q2;
        const float q8 = q4 * q4;
        const float q9 = q8 * q;
        const float q16 = q8 * q8;
        numerator = fmaf(q, sorted[3] + sorted[5], numerator);
        numerator = fmaf(q4, sorted[2] + sorted[6], numerator);
        numerator = fmaf(q9, sorted[1] + sorted[7], numerator);
        numerator = fmaf(q16, sorted[0] + sorted[8], numerator);
        weights = ((q16 + q9) + q4) + q;
    } else {
        // High powers of q would multiply its error.
        TAM_UNROLL
        for (int d = 1; d <= kMiddle; ++d) {
            const float weight = exp2_approximate(-exponent * static_cast<float>(d * d));
            numerator = fmaf(weight, sorted[kMiddle - d] + sorted[kMiddle + d], numerator);
            weights += weight;
        }
    }
    return numerator * reciprocal_approximate(fmaf(2.0f, weights, 1.0f));
}

// What a thread has seen of the windows that it filtered the short way.
struct Seen {
    std::uint32_t largest_sum = 0;  // bits of sums over at least a window; of negative ones, NaN and Inf: large
    float smallest = 0.0f;

    TAM_DEVICE void add(float sum, float value) {
        largest_sum = max(largest_sum, float_as_bits(sum));
        smallest = smaller(smallest, value);
    }

    // Windows of sums below 2^-59 come out wrong where others of the thread make up for it: where those reach 2^-32, they
    // are 2^-23 of the map's maximum at most.
    TAM_DEVICE bool needs_general() const {
        constexpr std::uint32_t kLow = (127u - 32u) << 23;
        constexpr std::uint32_t kHigh = (127u + 56u) << 23;
        return largest_sum >= kHigh || (largest_sum != 0 && largest_sum < kLow) || smallest < 0.0f;
    }
};

// A power of two that brings values of the given largest magnitude (bits of a finite float) near 1, and its inverse.
struct WindowScale {
    float factor, inverse;
    TAM_DEVICE static WindowScale of(std::uint32_t magnitude) {
        const int exponent = min(max(254 - static_cast<int>(magnitude >> 23), 1), 253);
        return {bits_as_float(static_cast<std::uint32_t>(exponent) << 23),
                bits_as_float(static_cast<std::uint32_t>(254 - exponent) << 23)};
    }
};

constexpr std::uint32_t kMagnitude = 0x7fffffffu;
constexpr std::uint32_t kInfinity = 0x7f800000u;

TAM_DEVICE float quiet_nan() {
    return bits_as_float(0x7fc00000u);
}

// Any window, read by load(row, column) with both from 0 to K - 1.
template <int K, class Load>
TAM_DEVICE float general_window(const Load& load, bool constant_window_nan) {
    constexpr int kCount = K * K;
    float values[kCount];
    std::uint32_t largest = 0;
    TAM_UNROLL
    for (int i = 0; i < kCount; ++i) {
        values[i] = load(i / K, i % K);
        largest = max(largest, float_as_bits(values[i]) & kMagnitude);
    }
    if (largest >= kInfinity) {
        return quiet_nan();
    }
    const WindowScale scale = WindowScale::of(largest);
    float sum = 0.0f;
    float squares = 0.0f;
    TAM_UNROLL
    for (int i = 0; i < kCount; ++i) {
        values[i] *= scale.factor;
        sum += values[i];
        squares = fmaf(values[i], values[i], squares);
    }
    if (!(sum > 0.0f)) {
        return 0.0f;
    }
    // Column by column, so that a column's values are in neighbouring registers; then row by row.
    TAM_UNROLL
    for (int column = 0; column < K; ++column) {
        float line[K];
        TAM_UNROLL
        for (int row = 0; row < K; ++row) {
            line[row] = values[row * K + column];
        }
        sort_line<K>(line);
        TAM_UNROLL
        for (int row = 0; row < K; ++row) {
            values[row * K + column] = line[row];
        }
    }
    TAM_UNROLL
    for (int row = 0; row < K; ++row) {
        sort_line<K>(values + row * K);
    }
    complete<K>(values);
    if (values[0] == values[kCount - 1]) {
        return constant_window_nan ? quiet_nan() : values[0] * scale.inverse;
    }
    return weighted_mean<kCount>(values, sum, squares) * scale.inverse;
}

template <int K, class Storage>
TAM_DEVICE float general_window(const Plane<Storage>& plane, int y, int x, bool constant_window_nan) {
    int columns[K];
    TAM_UNROLL
    for (int i = 0; i < K; ++i) {
        columns[i] = reflected(x + i - K / 2, plane.width) * plane.col_stride;
    }
    return general_window<K>(
        [&](int row, int column) {
            const int at = reflected(y + row - K / 2, plane.height);
            return to_float(plane.data[static_cast<std::int64_t>(at) * plane.row_stride + columns[column]]);
        },
        constant_window_nan);
}

// ------------------------------------------------------------------------------- 3 x 3: four columns, sliding down the rows

constexpr int kStripWidth = 4;
constexpr int kStripColumns = kStripWidth + 2;  // with a neighbour on both sides

// Six neighbouring values of a row as floats, and as what is sorted.
template <class Storage>
struct StripRow {
    static constexpr int kSorted = kStripColumns;
    using Sorted = float;
    float values[kStripColumns];
    TAM_DEVICE float sorted(int i) const { return values[i]; }
};

// Sorted side by side: columns (1, 2), (3, 4) and (0, 5).
template <class Half>
struct StripRowOfHalves {
    static constexpr int kSorted = kStripColumns / 2;
    using Sorted = Pair<Half>;
    Pair<Half> pairs[kSorted];
    float values[kStripColumns];
    TAM_DEVICE Pair<Half> sorted(int i) const { return pairs[i]; }
    TAM_DEVICE void widen() {
        const float2 near_left = floats_of(pairs[0]);
        const float2 near_right = floats_of(pairs[1]);
        const float2 outer = floats_of(pairs[2]);
        values[0] = outer.x;
        values[1] = near_left.x;
        values[2] = near_left.y;
        values[3] = near_right.x;
        values[4] = near_right.y;
        values[5] = outer.y;
    }
};
template <>
struct StripRow<__half> : StripRowOfHalves<__half> {};
template <>
struct StripRow<__nv_bfloat16> : StripRowOfHalves<__nv_bfloat16> {};

// Reads rows of a strip: four elements at once where the memory's alignment allows it.
template <class Storage, bool Aligned>
class StripReader {
  public:
    TAM_DEVICE StripReader(const Plane<Storage>& plane, int x)
        : from_(plane.data + static_cast<std::int64_t>(x) * plane.col_stride), plane_(plane), x_(x) {}

    TAM_DEVICE StripRow<Storage> row(int y) const {
        const Storage* const from = from_ + static_cast<std::int64_t>(reflected_once(y, plane_.height)) * plane_.row_stride;
        Storage near[kStripColumns];
        if constexpr (Aligned) {
            load_four(from, near + 1);
            near[0] = near[2];
            near[5] = near[3];
            if (x_ > 0) {
                near[0] = from[-1];
            }
            if (x_ + kStripWidth < plane_.width) {
                near[5] = from[kStripWidth];
            }
        } else {
            // What is beyond the right edge is two columns to the left; farther on it is anything, and so is a side of 1.
            near[1] = from[0];
            near[0] = near[1];
            if (x_ > 0) {
                near[0] = from[-plane_.col_stride];
            }
            TAM_UNROLL
            for (int i = 2; i < kStripColumns; ++i) {
                near[i] = near[i - 2];
                if (x_ + i - 1 < plane_.width) {
                    near[i] = from[(i - 1) * plane_.col_stride];
                }
            }
            if (x_ == 0) {
                near[0] = near[2];
            }
        }
        return row_of(near);
    }

  private:
    TAM_DEVICE static void load_four(const float* from, float* to) {
        const float4 four = *reinterpret_cast<const float4*>(from);
        to[0] = four.x;
        to[1] = four.y;
        to[2] = four.z;
        to[3] = four.w;
    }
    template <class Half>
    TAM_DEVICE static void load_four(const Half* from, Half* to) {
        const uint2 four = *reinterpret_cast<const uint2*>(from);
        memcpy(to, &four, sizeof four);
    }

    TAM_DEVICE static StripRow<float> row_of(const float* near) {
        StripRow<float> row;
        TAM_UNROLL
        for (int i = 0; i < kStripColumns; ++i) {
            row.values[i] = near[i];
        }
        return row;
    }
    template <class Half>
    TAM_DEVICE static StripRow<Half> row_of(const Half* near) {
        StripRow<Half> row;
        const Half outer[] = {near[0], near[5]};
        memcpy(&row.pairs[0], near + 1, sizeof(Pair<Half>));
        memcpy(&row.pairs[1], near + 3, sizeof(Pair<Half>));
        memcpy(&row.pairs[2], outer, sizeof(Pair<Half>));
        row.widen();
        return row;
    }

    const Storage* from_;
    const Plane<Storage>& plane_;
    int x_;
};

TAM_DEVICE void place_row(float* window, const Ordered3<float>& row) {
    window[0] = row.low;
    window[1] = row.mid;
    window[2] = row.high;
}

TAM_DEVICE void sort_windows(const Ordered3<float>* columns, float (*sorted)[9]) {
    TAM_UNROLL
    for (int first = 0; first < kStripWidth; first += 2) {
        const Ordered3<float>* const c = columns + first;
        const auto low = Ordered2<float>::of(c[1].low, c[2].low);
        const auto mid = Ordered2<float>::of(c[1].mid, c[2].mid);
        const auto high = Ordered2<float>::of(c[1].high, c[2].high);
        TAM_UNROLL
        for (int i = 0; i < 2; ++i) {
            float* const window = sorted[first + i];
            place_row(window, Ordered3<float>::of(low, c[3 * i].low));
            place_row(window + 3, Ordered3<float>::of(mid, c[3 * i].mid));
            place_row(window + 6, Ordered3<float>::of(high, c[3 * i].high));
            complete<3>(window);
        }
    }
}

// From two pairs: the upper of a and the lower of b; both lower; both upper.
template <class Half>
TAM_DEVICE Pair<Half> straddling(Pair<Half> a, Pair<Half> b) {
    return {__byte_perm(a.bits, b.bits, 0x5432)};
}
template <class Half>
TAM_DEVICE Pair<Half> lower_halves(Pair<Half> a, Pair<Half> b) {
    return {__byte_perm(a.bits, b.bits, 0x5410)};
}
template <class Half>
TAM_DEVICE Pair<Half> upper_halves(Pair<Half> a, Pair<Half> b) {
    return {__byte_perm(a.bits, b.bits, 0x7632)};
}

// The columns left of, at and right of two pairs of windows, from the columns (1, 2), (3, 4) and (0, 5).
template <class Half>
TAM_DEVICE void sort_line_of_pairs(Pair<Half> near_left, Pair<Half> near_right, Pair<Half> outer, Pair<Half>* first,
                                   Pair<Half>* second) {
    const Pair<Half> left = lower_halves(outer, near_left);       // (0, 1)
    const Pair<Half> middle = straddling(near_left, near_right);  // (2, 3)
    const Pair<Half> right = upper_halves(near_right, outer);     // (4, 5)
    const auto two = Ordered2<Pair<Half>>::of(left, near_left);
    const auto a = Ordered3<Pair<Half>>::of(two, middle);
    const auto other = Ordered2<Pair<Half>>::of(near_right, right);
    const auto b = Ordered3<Pair<Half>>::of(other, middle);
    first[0] = a.low;
    first[1] = a.mid;
    first[2] = a.high;
    second[0] = b.low;
    second[1] = b.mid;
    second[2] = b.high;
}

template <class Half>
TAM_DEVICE void sort_windows(const Ordered3<Pair<Half>>* columns, float (*sorted)[9]) {
    Pair<Half> first[9];
    Pair<Half> second[9];
    sort_line_of_pairs(columns[0].low, columns[1].low, columns[2].low, first, second);
    sort_line_of_pairs(columns[0].mid, columns[1].mid, columns[2].mid, first + 3, second + 3);
    sort_line_of_pairs(columns[0].high, columns[1].high, columns[2].high, first + 6, second + 6);
    complete<3>(first);
    complete<3>(second);
    TAM_UNROLL
    for (int i = 0; i < 9; ++i) {
        const float2 a = floats_of(first[i]);
        const float2 b = floats_of(second[i]);
        sorted[0][i] = a.x;
        sorted[1][i] = a.y;
        sorted[2][i] = b.x;
        sorted[3][i] = b.y;
    }
}

// Sums over the four windows from sums over the six columns.
TAM_DEVICE void sum_windows(const float* columns, float* windows) {
    const float left = columns[1] + columns[2];
    const float right = columns[3] + columns[4];
    windows[0] = columns[0] + left;
    windows[1] = left + columns[3];
    windows[2] = columns[2] + right;
    windows[3] = right + columns[5];
}

// Rows y_begin .. y_end - 1 of the four columns from x on; store(y, out) takes a row of four. Columns beyond the map's are
// made as well, of what memory it has. Not Long: two rows at most. Returns whether the windows have to be made again by
// general_window.
template <class Storage, bool Aligned, bool Long, class Store>
TAM_DEVICE bool filter_strip(const Plane<Storage>& plane, int y_begin, int y_end, int x, const Store& store) {
    using Row = StripRow<Storage>;
    using Sorted = typename Row::Sorted;
    const StripReader<Storage, Aligned> reader(plane, x);
    Seen seen;
    // The rows y and y + 1, here first and second, are in both windows of a step: their order and their sums are shared.
    // Then the rows y + 3 and y + 4 take the places of above and first.
    const auto step = [&](Row& above, Row& first, const Row& second, const Row& below, int y) {
        Ordered2<Sorted> order[Row::kSorted];
        float sums[kStripColumns];
        float squares[kStripColumns];
        TAM_UNROLL
        for (int i = 0; i < Row::kSorted; ++i) {
            order[i] = Ordered2<Sorted>::of(first.sorted(i), second.sorted(i));
        }
        TAM_UNROLL
        for (int i = 0; i < kStripColumns; ++i) {
            sums[i] = first.values[i] + second.values[i];
            squares[i] = fmaf(first.values[i], first.values[i], second.values[i] * second.values[i]);
        }
        const auto filter_row = [&](const Row& third, float (&out)[kStripWidth]) {
            Ordered3<Sorted> columns[Row::kSorted];
            TAM_UNROLL
            for (int i = 0; i < Row::kSorted; ++i) {
                columns[i] = Ordered3<Sorted>::of(order[i], third.sorted(i));
            }
            float column_sums[kStripColumns];
            float column_squares[kStripColumns];
            TAM_UNROLL
            for (int i = 0; i < kStripColumns; ++i) {
                column_sums[i] = sums[i] + third.values[i];
                column_squares[i] = fmaf(third.values[i], third.values[i], squares[i]);
            }
            float window_sums[kStripWidth];
            float window_squares[kStripWidth];
            sum_windows(column_sums, window_sums);
            sum_windows(column_squares, window_squares);
            float sorted[kStripWidth][9];
            sort_windows(columns, sorted);
            TAM_UNROLL
            for (int i = 0; i < kStripWidth; ++i) {
                out[i] = weighted_mean<9>(sorted[i], window_sums[i], window_squares[i]);
            }
            seen.add(window_sums[0] + window_sums[3], smaller(sorted[0][0], sorted[3][0]));
        };
        float out[kStripWidth];
        filter_row(above, out);
        store(y, out);
        if (Long && y + 2 < y_end) {
            above = reader.row(y + 3);
            first = reader.row(y + 4);
        }
        filter_row(below, out);
        if (y + 1 < y_end) {
            store(y + 1, out);
        }
    };
    Row a = reader.row(y_begin - 1);
    Row b = reader.row(y_begin);
    Row c = reader.row(y_begin + 1);
    Row d = reader.row(y_begin + 2);
    if constexpr (Long) {
        for (int y = y_begin; y < y_end; y += 4) {
            step(a, b, c, d, y);
            if (y + 2 < y_end) {
                step(c, d, a, b, y + 2);
            }
        }
    } else {
        step(a, b, c, d, y_begin);
    }
    return seen.needs_general();
}

// ------------------------------------------------------------------------------- 5 x 5 and 7 x 7: two columns of one row

constexpr int kPairWidth = 2;

template <int K, class Storage>
TAM_DEVICE bool filter_pair(const Plane<Storage>& plane, int y, int x, float (&out)[kPairWidth]) {
    constexpr int kColumns = K + kPairWidth - 1;
    const Storage* rows[K];
    TAM_UNROLL
    for (int row = 0; row < K; ++row) {
        const int at = reflected(y + row - K / 2, plane.height);
        rows[row] = plane.data + static_cast<std::int64_t>(at) * plane.row_stride;
    }
    float columns[kColumns][K];
    float sums[kColumns];
    float squares[kColumns];
    TAM_UNROLL
    for (int i = 0; i < kColumns; ++i) {
        const int offset = reflected(x + i - K / 2, plane.width) * plane.col_stride;
        sums[i] = 0.0f;
        squares[i] = 0.0f;
        TAM_UNROLL
        for (int row = 0; row < K; ++row) {
            const float value = to_float(rows[row][offset]);
            sums[i] += value;
            squares[i] = fmaf(value, value, squares[i]);
            columns[i][row] = value;
        }
        sort_line<K>(columns[i]);
    }
    Seen seen;
    TAM_UNROLL
    for (int window = 0; window < kPairWidth; ++window) {
        float sorted[K * K];
        float sum = 0.0f;
        float square = 0.0f;
        TAM_UNROLL
        for (int i = 0; i < K; ++i) {
            sum += sums[window + i];
            square += squares[window + i];
            TAM_UNROLL
            for (int row = 0; row < K; ++row) {
                sorted[row * K + i] = columns[window + i][row];
            }
        }
        TAM_UNROLL
        for (int row = 0; row < K; ++row) {
            sort_line<K>(sorted + row * K);
        }
        complete<K>(sorted);
        out[window] = weighted_mean<K * K>(sorted, sum, square);
        seen.add(sum, sorted[0]);
    }
    return seen.needs_general();
}

// ---------------------------------------------------------------------------------------------- any size and dtype, slowly

template <class Real>
struct WideScale;
template <>
struct WideScale<float> {
    TAM_DEVICE static double factor(float largest) { return WindowScale::of(float_as_bits(largest)).factor; }
};
template <>
struct WideScale<double> {
    TAM_DEVICE static double factor(double largest) {
        const long long exponent = 2046 - (__double_as_longlong(largest) >> 52);
        return __longlong_as_double((exponent < 2 ? 2 : exponent > 2044 ? 2044 : exponent) << 52);
    }
};

// Any window, read by load(row, column): each value's rank is counted. Float64 inside.
template <class Real, class Load>
TAM_DEVICE Real counted_window(int kernel_size, const Load& load, bool constant_window_nan) {
    const int middle = kernel_size * kernel_size / 2;
    const Real first = load(0, 0);
    if (kernel_size == 1) {
        return first - first == 0 ? first : static_cast<Real>(quiet_nan());
    }
    Real lowest = first;
    Real highest = first;
    bool finite = true;
    for (int row = 0; row < kernel_size; ++row) {
        for (int column = 0; column < kernel_size; ++column) {
            const Real value = load(row, column);
            finite = finite && value - value == 0;
            lowest = value < lowest ? value : lowest;
            highest = value > highest ? value : highest;
        }
    }
    if (!finite) {
        return static_cast<Real>(quiet_nan());
    }
    const double scale = WideScale<Real>::factor(-lowest > highest ? -lowest : highest);
    double sum = 0.0;
    double squares = 0.0;
    for (int row = 0; row < kernel_size; ++row) {
        for (int column = 0; column < kernel_size; ++column) {
            const double value = static_cast<double>(load(row, column)) * scale;
            sum += value;
            squares += value * value;
        }
    }
    if (!(sum > 0.0)) {
        return 0;
    }
    if (lowest == highest) {
        return constant_window_nan ? static_cast<Real>(quiet_nan()) : first;
    }
    constexpr double kHalfLog2EWide = 0.72134752044448170;
    constexpr double kNegligible = sizeof(Real) == sizeof(double) ? 100.0 : 40.0;
    const double deviation = static_cast<double>(kernel_size * kernel_size) * squares - sum * sum;
    const double exponent = deviation > 0.0 ? sum * sum * kHalfLog2EWide / deviation : 2.0 * kNegligible;
    double numerator = 0.0;
    double denominator = 0.0;
    for (int row = 0; row < kernel_size; ++row) {
        for (int column = 0; column < kernel_size; ++column) {
            const Real value = load(row, column);
            int distance = -middle;
            // Equal values are ranked in the order of the window.
            for (int i = 0; i < kernel_size; ++i) {
                for (int j = 0; j < kernel_size; ++j) {
                    const Real other = load(i, j);
                    const bool before = i < row || (i == row && j < column);
                    distance += other < value || (other == value && before) ? 1 : 0;
                }
            }
            const double power = exponent * static_cast<double>(distance * distance);
            if (power < kNegligible) {
                const double weight =
                    sizeof(Real) == sizeof(double) ? exp2(-power) : static_cast<double>(exp2f(static_cast<float>(-power)));
                numerator += weight * (static_cast<double>(value) * scale);
                denominator += weight;
            }
        }
    }
    return static_cast<Real>(numerator / denominator / scale);
}

template <class Real>
struct RealOf {
    using Type = float;
};
template <>
struct RealOf<double> {
    using Type = double;
};

template <class Storage, class Index>
TAM_DEVICE typename RealOf<Storage>::Type counted_window(const Plane<Storage, Index>& plane, Index y, Index x,
                                                         int kernel_size, bool constant_window_nan) {
    using Real = typename RealOf<Storage>::Type;
    const int radius = kernel_size / 2;
    const bool inside = y >= radius && x >= radius && y + radius < plane.height && x + radius < plane.width;
    const auto at = [&](std::int64_t row, std::int64_t column) {
        const Storage value = plane.data[row * plane.row_stride + column * plane.col_stride];
        if constexpr (std::is_same_v<Storage, double>) {
            return value;
        } else {
            return to_float(value);
        }
    };
    return counted_window<Real>(
        kernel_size,
        [&](int row, int column) {
            const Index down = y + row - radius;
            const Index across = x + column - radius;
            return inside ? at(down, across) : at(reflected(down, plane.height), reflected(across, plane.width));
        },
        constant_window_nan);
}

}  // namespace tam::cuda
