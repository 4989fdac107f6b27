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

// 2^-x for floats x in [0, 100] as 2^-(n / 32) (1 - f c1 + f^2 c2), |f| <= 1 / 64; relative error below 1.5e-7.
struct Exp2 {
    static constexpr float to_steps = 0x1.8p18f;  // added to a float, this rounds it to 32nds
    static constexpr float c1 = -0.69315725f;     // minimax with the constant term fixed at 1
    static constexpr float c2 = 0.24022651f;
    static constexpr int shift = 18;  // from 32nds in the lowest bits to a float's exponent
    // The bits of 2^-(k / 32), plus k << shift: what subtracting the shifted steps takes off too much.
    alignas(64) static constexpr std::uint32_t table[32] = {
        0x3f800000, 0x3f7e83b3, 0x3f7d257d, 0x3f7be4ba, 0x3f7ac0c7, 0x3f79b907, 0x3f78ccdf, 0x3f77fbb8,
        0x3f7744fd, 0x3f76a81e, 0x3f76248c, 0x3f75b9be, 0x3f75672a, 0x3f752c4d, 0x3f7508a4, 0x3f74fbaf,
        0x3f7504f3, 0x3f7523f6, 0x3f75583f, 0x3f75a15b, 0x3f75fed7, 0x3f767043, 0x3f76f532, 0x3f778d3a,
        0x3f7837f0, 0x3f78f4f0, 0x3f79c3d3, 0x3f7aa43a, 0x3f7b95c2, 0x3f7c980f, 0x3f7daac3, 0x3f7ecd87,
    };
};

TAM_INLINE f32v exp2_minus(f32v x) {
    const f32v shifted = x + Exp2::to_steps;
    const f32v fraction = x - (shifted - Exp2::to_steps);
    const f32v power = from_bits(lookup(Exp2::table, bits(shifted)) - (bits(shifted) << Exp2::shift));
    return power + power * (fraction * (Exp2::c1 + fraction * Exp2::c2));
}

// 2^-f for f in [-0.5, 0.5].
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

TAM_INLINE f64v exp2_minus(f64v x) {
    using C = Constants<double>;
    const f64v shifted = x + C::to_integer;
    const f64v fraction = x - (shifted - C::to_integer);
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

// -------------------------------------------------------------------------------------------------- rows in a stream

// In the stream of a padded tile the rows of a map are `gaps` of 2 Radius values apart, the reflected borders. A vector
// holds at most part of one gap where a row is no shorter than a vector. These tables say, for a gap that begins at lane
// `begin` (it may have begun before the vector), how to make such a vector from as many values of the map in a row, and
// back.
template <int Radius>
struct Gaps {
    static constexpr int kGap = 2 * Radius;
    static constexpr int kFirst = 1 - kGap;
    static constexpr int kCount = kLanes + kGap;
    alignas(64) std::int32_t spread[kCount][kLanes] = {};  // lanes of values of the map that make the vector of the stream
    alignas(64) std::int32_t gather[kCount][kLanes] = {};  // lanes of the stream's vector that are no gap
    std::int32_t shift[kCount] = {};  // the values of the map begin this far before the row after the gap
    std::int32_t valid[kCount] = {};  // how many lanes are no gap

    constexpr Gaps() {
        for (int begin = kFirst; begin <= kLanes; ++begin) {
            const int entry = begin - kFirst;
            shift[entry] = begin > Radius ? begin : begin > -Radius ? Radius + 1 : 0;
            for (int lane = 0; lane < kLanes; ++lane) {
                const int inside = lane - begin;
                const int before_next_row = inside < 0        ? -inside         // the row before
                                            : inside < Radius ? 2 + inside      // its border, going back
                                            : inside < kGap   ? inside - kGap   // the next one's, also going back
                                                              : kGap - inside;  // the next row
                spread[entry][lane] = shift[entry] - before_next_row;
                if (inside < 0 || inside >= kGap) {
                    gather[entry][valid[entry]++] = lane;
                }
            }
        }
    }

    // The entry for a row of which `to_gap` values are left.
    static std::int64_t entry(std::int64_t to_gap) { return least(to_gap, kLanes) - kFirst; }
};

template <int Radius>
constexpr Gaps<Radius> kGaps;

// Storage types of maps that are filtered in float32.
struct Float32 {
    using Storage = float;
    using Vector = f32v;
    TAM_INLINE f32v widen(f32v value) { return value; }
    TAM_INLINE f32v narrow(f32v value) { return value; }
};
struct Float16 {
    using Storage = std::uint16_t;
    using Vector = u16v;
    TAM_INLINE f32v widen(u16v value) { return f32_from_f16(value); }
    TAM_INLINE u16v narrow(f32v value) { return f16_from_f32(value); }
};
struct BFloat16 {
    using Storage = std::uint16_t;
    using Vector = u16v;
    TAM_INLINE f32v widen(u16v value) { return f32_from_bf16(value); }
    TAM_INLINE u16v narrow(f32v value) { return bf16_from_f32(value); }
};

// Loads `count` values and zeros.
template <class V, class T>
TAM_INLINE V load_some(const T* from, std::int64_t count) {
    T values[sizeof(V) / sizeof(T)] = {};
    if (count > 0) {
        std::memcpy(values, from, static_cast<std::size_t>(count) * sizeof(T));
    }
    return load<V>(values);
}

// Where the windows of a stream go, vector after vector: in place, or without the gaps to where the rows are wanted.
template <class Scalar>
struct InPlace {
    Scalar* to;

    template <class F>
    TAM_INLINE void put(InPlace& self, F value) {
        store(self.to, value);
        self.to += Simd<Scalar>::lanes;
    }
};

#if TAM_LANES >= 8

template <int Radius>
struct Gathered {
    float* to;
    const float* end;
    std::int64_t to_gap;  // at first the width of a row
    std::int64_t pitch;

    TAM_INLINE void put(Gathered& self, f32v value) {
        const std::int64_t entry = Gaps<Radius>::entry(self.to_gap);
        const std::int64_t valid = kGaps<Radius>.valid[entry];
        const f32v row = permuted(value, load<i32v>(kGaps<Radius>.gather[entry]));
        const std::int64_t room = self.end - self.to;
        if (__builtin_expect(room >= kLanes, 1)) {
            store(self.to, row);
        } else if (room > 0) {
            store_some(self.to, row, least(room, valid));
        }
        self.to += valid;
        self.to_gap -= kLanes;
        self.to_gap += self.to_gap <= -2 * Radius ? self.pitch : 0;
    }
};

#endif

// ---------------------------------------------------------------------------------------------------- the pipeline

#if TAM_LANES == 16

// The stages of the 3x3 window interleaved by hand over four neighbouring vectors, for machines with registers enough: while
// the network sorts one vector, the exponents of the one before it, the weights of the one before that and the result of
// the one before that are found. Every stage is cut into 16 steps of about a latency each. The bits are those of `Stream`.
struct Pipeline {
    static constexpr int kSteps = 16;
    static constexpr std::int64_t kDepth = 3;  // vectors between the network and the result
    static constexpr std::int64_t kSlots = kDepth + 1;
    static constexpr std::int64_t kSlotSize = 5 * kLanes;  // the median and the pair sums of a vector
    using C = Constants<float>;

    // Where the stages work, and what they hand on in registers.
    std::int64_t vector = 0;
    std::int64_t column_pitch = 0;
    float half_unscale = 0.0f;
    f32v square{};
    f32v exponent{};
    f32v weight{};
    const std::int32_t* columns;
    const float* squares;
    float* sorted;
    const float* spread;
    const float* blended;
    const float* rows[3];  // of a padded stream, whose columns are sorted meanwhile ...
    float* sorted_column;  // ... to this place
    // Within an iteration.
    i32v upper, middle, lower;
    f32v column_square, row_square;
    i32v l0, l1, l2, m0, m1, m2, h0, h1, h2;
    f32v next_square, next_exponent, sum, pairs, product;
    f32v shifted, fraction, power, slope;
    f32v q4, q8, q9, q16, weighted, far, weights;

    template <int Step>
    TAM_INLINE void sort(Pipeline& p) {
        const std::int32_t* const low_row = p.columns;
        const std::int32_t* const middle_row = low_row + p.column_pitch;
        const std::int32_t* const high_row = middle_row + p.column_pitch;
        if constexpr (Step == 0) {
            p.l0 = in_register(load<i32v>(low_row));
            p.l1 = in_register(load<i32v>(low_row + 1));
            p.m0 = in_register(load<i32v>(middle_row));
            p.m1 = in_register(load<i32v>(middle_row + 1));
            compare_exchange(p.l0, p.l1);
        } else if constexpr (Step == 1) {
            p.h0 = in_register(load<i32v>(high_row));
            p.h1 = in_register(load<i32v>(high_row + 1));
            compare_exchange(p.m0, p.m1);
        } else if constexpr (Step == 2) {
            p.l2 = in_register(load<i32v>(low_row + 2));
            compare_exchange(p.h0, p.h1);
        } else if constexpr (Step == 3) {
            p.m2 = in_register(load<i32v>(middle_row + 2));
            compare_exchange(p.l1, p.l2);
        } else if constexpr (Step == 4) {
            p.h2 = in_register(load<i32v>(high_row + 2));
            compare_exchange(p.m1, p.m2);
        } else if constexpr (Step == 5) {
            p.next_square = load<f32v>(p.squares) + load<f32v>(p.squares + 1);
            compare_exchange(p.h1, p.h2);
        } else if constexpr (Step == 6) {
            compare_exchange(p.l0, p.l1);
        } else if constexpr (Step == 7) {
            compare_exchange(p.m0, p.m1);
            store(p.sorted + 4 * kLanes, from_bits(p.l0) + from_bits(p.h2));
        } else if constexpr (Step == 8) {
            p.next_square += load<f32v>(p.squares + 2);
            compare_exchange(p.h0, p.h1);
        } else if constexpr (Step == 9) {
            compare_exchange(p.l1, p.m0);
        } else if constexpr (Step == 10) {
            compare_exchange(p.m2, p.h1);
        } else if constexpr (Step == 11) {
            compare_exchange(p.l2, p.h0);
            store(p.sorted + 3 * kLanes, from_bits(p.l1) + from_bits(p.h1));
        } else if constexpr (Step == 12) {
            compare_exchange(p.m0, p.l2);
        } else if constexpr (Step == 13) {
            compare_exchange(p.h0, p.m2);
        } else if constexpr (Step == 14) {
            compare_exchange(p.l2, p.m1);
            store(p.sorted + 2 * kLanes, from_bits(p.m0) + from_bits(p.m2));
        } else {
            compare_exchange(p.m1, p.h0);
            store(p.sorted + kLanes, from_bits(p.l2) + from_bits(p.h0));
            store(p.sorted, p.m1);
        }
    }

    // Sorted columns in a ring of vectors, the first of which is there again behind the last.
    static constexpr std::int64_t kRing = 8;
    static constexpr std::int64_t kRingPitch = (kRing + 1) * kLanes;
    static constexpr std::int64_t kAhead =
        3;  // vectors between the columns and the network: what was stored is in the cache

    // Stream::sort_column
    template <int Step>
    TAM_INLINE void sort_columns(Pipeline& p) {
        if constexpr (Step == 0) {
            p.upper = load<i32v>(p.rows[0]);
            p.middle = in_register(load<i32v>(p.rows[1]));
            p.lower = in_register(load<i32v>(p.rows[2]));
        } else if constexpr (Step == 3) {
            p.column_square = from_bits(p.upper) * from_bits(p.upper);
            p.row_square = from_bits(p.middle) * from_bits(p.middle);
            compare_exchange(p.upper, p.middle);
        } else if constexpr (Step == 5) {
            p.column_square += p.row_square;
            p.row_square = from_bits(p.lower) * from_bits(p.lower);
            compare_exchange(p.middle, p.lower);
        } else if constexpr (Step == 8) {
            p.column_square += p.row_square;
            compare_exchange(p.upper, p.middle);
            store(p.sorted_column + 2 * kRingPitch, from_bits(p.lower));
        } else if constexpr (Step == 10) {
            store(p.sorted_column, from_bits(p.upper));
        } else if constexpr (Step == 12) {
            store(p.sorted_column + kRingPitch, from_bits(p.middle));
        } else if constexpr (Step == 14) {
            store(p.sorted_column + 3 * kRingPitch, p.column_square);
        }
    }

    // weight_exponent
    template <int Step>
    TAM_INLINE void find_exponent(Pipeline& p) {
        const float* const slot = p.spread;
        if constexpr (Step == 0) {
            p.sum = load<f32v>(slot + kLanes) + load<f32v>(slot + 2 * kLanes);
        } else if constexpr (Step == 1) {
            p.pairs = load<f32v>(slot + 3 * kLanes) + load<f32v>(slot + 4 * kLanes);
        } else if constexpr (Step == 3) {
            p.sum += p.pairs;
        } else if constexpr (Step == 4) {
            p.square *= 9.0f;
        } else if constexpr (Step == 5) {
            p.sum += load<f32v>(slot);
        } else if constexpr (Step == 6) {
            p.sum *= p.sum;
        } else if constexpr (Step == 7) {
            p.product = p.sum * C::half_log2_e;
        } else if constexpr (Step == 8) {
            p.square -= p.sum;
        } else if constexpr (Step == 9) {
            p.product /= p.square;
        } else if constexpr (Step == 15) {
            p.next_exponent = (f32v)smaller((u32v)p.product, (u32v)broadcast<f32v>(C::largest_exponent));
        }
    }

    // exp2_minus
    template <int Step>
    TAM_INLINE void find_weight(Pipeline& p) {
        if constexpr (Step == 0) {
            p.shifted = p.exponent + Exp2::to_steps;
        } else if constexpr (Step == 1) {
            p.fraction = p.shifted - Exp2::to_steps;
        } else if constexpr (Step == 2) {
            p.power = from_bits(lookup(Exp2::table, bits(p.shifted)));
            p.fraction = p.exponent - p.fraction;
        } else if constexpr (Step == 4) {
            p.slope = p.fraction * Exp2::c2;
            p.shifted = from_bits(bits(p.shifted) << Exp2::shift);
        } else if constexpr (Step == 6) {
            p.slope = Exp2::c1 + p.slope;
            p.power = from_bits(bits(p.power) - bits(p.shifted));
        } else if constexpr (Step == 8) {
            p.slope = p.fraction * p.slope;
        } else if constexpr (Step == 10) {
            p.slope = p.power * p.slope;
        } else if constexpr (Step == 12) {
            p.power = p.power + p.slope;
        }
    }

    template <int Step>
    TAM_INLINE void blend(Pipeline& p) {
        const float* const slot = p.blended;
        const f32v q = p.weight;
        if constexpr (Step == 0) {
            p.q4 = q * q;
        } else if constexpr (Step == 1) {
            p.q4 *= p.q4;
            p.weighted = q * load<f32v>(slot + kLanes);
        } else if constexpr (Step == 2) {
            p.q4 = at_least<float>(p.q4, C::smallest_weight);
        } else if constexpr (Step == 3) {
            p.q8 = p.q4 * p.q4;
            p.weights = q + p.q4;
        } else if constexpr (Step == 4) {
            p.far = p.q4 * load<f32v>(slot + 2 * kLanes);
        } else if constexpr (Step == 5) {
            p.q9 = p.q8 * q;
        } else if constexpr (Step == 6) {
            p.q16 = p.q8 * p.q8;
            p.weighted += p.far;
        } else if constexpr (Step == 7) {
            p.far = p.q9 * load<f32v>(slot + 3 * kLanes);
        } else if constexpr (Step == 8) {
            p.q8 = p.q16 * load<f32v>(slot + 4 * kLanes);
            p.q9 += p.q16;
        } else if constexpr (Step == 9) {
            p.far += p.q8;
            p.weights += p.q9;
        } else if constexpr (Step == 10) {
            p.weighted += p.far;
            p.weights += 0.5f;
        } else if constexpr (Step == 11) {
            p.weighted = load<f32v>(slot) + p.weighted;
        } else if constexpr (Step == 12) {
            p.weighted /= p.weights;
        } else if constexpr (Step == 15) {
            p.weighted *= p.half_unscale;
        }
    }

    // Of the stages behind the network, those that still have work: Left is 3, or less at the end.
    template <bool Columns, bool Sorts, int Left, int... Step>
    TAM_INLINE void run_steps(Pipeline& p, std::integer_sequence<int, Step...>) {
        const auto step = [&](auto number) TAM_ALWAYS_INLINE {
            constexpr int kStep = decltype(number)::value;
            if constexpr (Left > 2) {
                find_exponent<kStep>(p);
            }
            blend<kStep>(p);
            if constexpr (Left > 1) {
                find_weight<kStep>(p);
            }
            if constexpr (Sorts) {
                sort<kStep>(p);
            }
            if constexpr (Columns) {
                sort_columns<kStep>(p);
            }
        };
        (step(std::integral_constant<int, Step>{}), ...);
    }

    template <int... Step>
    TAM_INLINE void run_column_steps(Pipeline& p, std::integer_sequence<int, Step...>) {
        (sort_columns<Step>(p), ...);
    }

    // All stages by one vector; the result is that of the vector kDepth before `number`. Left as above, 4 with the network.
    template <bool Columns, int Left>
    TAM_INLINE f32v advance(Pipeline& p, std::int64_t number, const std::int32_t* columns, const float* squares,
                            float* slots) {
        p.columns = columns;
        p.squares = squares;
        p.sorted = slots + (number & (kSlots - 1)) * kSlotSize;
        p.spread = slots + ((number - 1) & (kSlots - 1)) * kSlotSize;
        p.blended = slots + ((number - kDepth) & (kSlots - 1)) * kSlotSize;
        run_steps<Columns, (Left > 3), Left>(p, std::make_integer_sequence<int, kSteps>{});
        p.square = p.next_square;
        p.exponent = p.next_exponent;
        p.weight = p.power;
        return in_register(p.weighted);
    }

    // The vectors of `count` windows. Sorts is false for the last ones, when only the other stages still have work. Not
    // inlined, so that the registers are the loop's alone.
    template <bool Sorts, class Sink>
    __attribute__((noinline)) void run(const std::int32_t* first_column, const float* first_square, float* slots,
                                       std::int64_t count, Sink& to) {
        Pipeline p;
        p.column_pitch = column_pitch;
        p.half_unscale = half_unscale;
        p.square = square;
        p.exponent = exponent;
        p.weight = weight;
        p.next_square = f32v{};
        Sink sink = to;
        std::int64_t number = vector;
        for (std::int64_t i = 0; i < count; i += kLanes, ++number) {
            const f32v result = advance<false, Sorts ? 4 : 3>(p, number, first_column + i, first_square + i, slots);
            if (number >= kDepth) {
                Sink::put(sink, result);
            }
        }
        square = p.square;
        exponent = p.exponent;
        weight = p.weight;
        vector = number;
        to = sink;
    }

    static constexpr std::int64_t kStreamMemory = 4 * kRingPitch + kSlots * kSlotSize;
    static_assert(kStreamMemory <= 1024, "4 KiB, see Stream::kBlock");

    // The windows of the `length` first values of a padded stream, columns and all; some vectors are read beyond it.
    template <class Sink>
    __attribute__((noinline)) void run_stream(const float* padded, std::int64_t pitch, std::int64_t length, float* memory,
                                              Sink sink) {
        Pipeline p;
        p.column_pitch = kRingPitch;
        p.half_unscale = half_unscale;
        p.square = p.next_square = f32v{};
        p.exponent = f32v{};
        p.weight = f32v{};
        float* const slots = memory + 4 * kRingPitch;
        const std::int64_t vectors = (length + kLanes - 1) / kLanes;
        const auto place = [&](std::int64_t number) TAM_ALWAYS_INLINE {
            const float* const from = padded + number * kLanes;
            p.rows[0] = from;
            p.rows[1] = from + pitch;
            p.rows[2] = from + 2 * pitch;
            p.sorted_column = memory + (number & (kRing - 1)) * kLanes;
        };
        for (std::int64_t number = 0; number < kAhead; ++number) {
            place(number);
            run_column_steps(p, std::make_integer_sequence<int, kSteps>{});
        }
        const auto go_on = [&](std::int64_t number, auto left) TAM_ALWAYS_INLINE {
            constexpr int kLeft = decltype(left)::value;
            constexpr bool kSorts = kLeft > 3;
            place(number + kAhead);
            const float* const column = memory + (number & (kRing - 1)) * kLanes;
            const f32v result = advance<kSorts, kLeft>(p, number, reinterpret_cast<const std::int32_t*>(column),
                                                       column + 3 * kRingPitch, slots);
            if (number >= kDepth) {
                Sink::put(sink, result);
            }
            if (kSorts && ((number + kAhead) & (kRing - 1)) == 0) {
                for (int row = 0; row < 4; ++row) {
                    float* const first = memory + row * kRingPitch;
                    store(first + kRing * kLanes, load<f32v>(first));
                }
            }
        };
        for (std::int64_t number = 0; number < vectors; ++number) {
            go_on(number, std::integral_constant<int, 4>{});
        }
        go_on(vectors, std::integral_constant<int, 3>{});
        go_on(vectors + 1, std::integral_constant<int, 2>{});
        go_on(vectors + 2, std::integral_constant<int, 1>{});
        static_assert(kDepth == 3);
    }
};

#endif

// ------------------------------------------------------------------------------------------------------ the stream

// Windows of a block: in rows of `count` windows whose first columns lie from `place` on, `pitch` apart.
struct Windows {
    std::int64_t rows = 1;
    std::int64_t count = 0;
    std::int64_t place = 0;
    std::int64_t pitch = 0;
};

// K is the kernel size, or 0 for one known at run time. General: values are order keys and may be negative or special.
//
// Windows go through three stages, `sort`, `weigh` and `blend`, a block at a time: each stage alone is short enough to
// overlap with its neighbours in a processor that runs out of order, all of them in a row are one chain of latencies.
// What passes from stage to stage lies in rows of `kBlock` values beside the block's sorted columns.
template <class Scalar, int K, bool General, std::int64_t Block = 0>
struct Stream {
    using F = typename Simd<Scalar>::Float;
    using I = typename Simd<Scalar>::Int;
    using U = typename Simd<Scalar>::Unsigned;
    using IntScalar = typename Simd<Scalar>::IntScalar;
    using C = Constants<Scalar>;
    static constexpr int kStep = Simd<Scalar>::lanes;
    static constexpr int kMaxK = K != 0 ? K : kMaxKernelSize;
    static constexpr int kMaxCentre = kMaxK * kMaxK / 2;
    // float64 sorts unscaled values and scales them afterwards, so that nothing is lost whatever the range.
    static constexpr bool kScaleLate = sizeof(Scalar) == 8;
    // With a 3x3 window all of a block's rows fit into 4 KiB: a load whose address equals that of a recent store modulo
    // 4096 has to wait.
    static constexpr bool kPipelined = kLanes == 16 && K == 3 && !General && sizeof(Scalar) == 4;
    static constexpr std::int64_t kBlock = Block != 0 ? Block : kPipelined ? 160 : K == 3 ? 96 : K == 0 ? 32 : 64;
    static constexpr std::int64_t kAhead = (kMaxK - 1 + kStep - 1) / kStep * kStep;  // columns that the next block needs too
    static constexpr std::int64_t kColumnPitch = kBlock + kAhead;
    enum Row { kMedian, kWeight, kSum, kSmallest, kLargest, kPairs };
    static constexpr int kRows = (General ? kPairs : kSum) + kMaxCentre;
    static constexpr std::int64_t kStages = kPipelined ? 320 : kRows * kBlock;
    static constexpr std::int64_t kMemory = (kMaxK + 1) * kColumnPitch + kStages;
    static_assert(kBlock % kStep == 0);

    const FilterPlan& plan;
    Scalar scale;
    Scalar half_unscale;  // half, because the denominator is: both sides of the median count
    std::int64_t pitch;
    Scalar* memory;  // kMemory values

    TAM_INLINE int size(const FilterPlan& filter_plan) { return K != 0 ? K : filter_plan.kernel_size; }

    IntScalar* column(int row) const { return reinterpret_cast<IntScalar*>(memory) + row * kColumnPitch; }
    Scalar* squares() const { return memory + kMaxK * kColumnPitch; }
    Scalar* stage(int row) const { return memory + (kMaxK + 1) * kColumnPitch + row * kBlock; }
    Scalar* pair(int distance) const { return stage((General ? kPairs : kSum) + distance - 1); }

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

    // Sorts a vector of columns, given as rows, into place `to`.
    TAM_INLINE void sort_column(const Stream& stream, I* values, std::int64_t to) {
        const int k = size(stream.plan);
        F sum{};
        TAM_UNROLL
        for (int row = 0; row < k; ++row) {
            const F value = value_of(values[row], stream.scale);
            sum = row == 0 ? value * value : sum + value * value;
        }
        store(stream.squares() + to, sum);
        if constexpr (K != 0) {
            sort_line<WindowNetwork<K>>(values, LineSequence<WindowNetwork<K>>{});
        } else {
            run_network(values, stream.plan.line, stream.plan.line_size);
        }
        TAM_UNROLL
        for (int row = 0; row < k; ++row) {
            store(stream.column(row) + to, values[row]);
        }
    }

    // The `count` columns of padded values from `from` on, to place `to`.
    void sort_columns(const Scalar* from, std::int64_t to, std::int64_t count) const {
        const Stream local = *this;
        const int k = size(plan);
        const IntScalar* const keys = reinterpret_cast<const IntScalar*>(from);
        for (std::int64_t i = 0; i < count; i += kStep) {
            I values[kMaxK];
            TAM_UNROLL
            for (int row = 0; row < k; ++row) {
                values[row] = load<I>(keys + i + row * local.pitch);
            }
            sort_column(local, values, to + i);
        }
    }

    // The columns that the block before had ahead of it are the first ones of the next.
    void move_columns() const {
        for (int row = 0; row <= kMaxK; ++row) {
            Scalar* const values = memory + row * kColumnPitch;
            for (std::int64_t i = 0; i < kAhead; i += kStep) {
                store(values + i, load<F>(values + kBlock + i));
            }
        }
    }

    // The windows whose first columns are at `place`.
    TAM_INLINE void sort(const Stream& stream, std::int64_t place, std::int64_t i) {
        const int k = size(stream.plan);
        const int centre = k * k / 2;
        I values[kMaxK * kMaxK];
        if constexpr (K != 0) {
            TAM_UNROLL
            for (int row = 0; row < K; ++row) {
                TAM_UNROLL
                for (int col = 0; col < K; ++col) {
                    values[row * K + col] = load<I>(stream.column(row) + place + col);
                }
                sort_line<WindowNetwork<K>>(values + row * K, LineSequence<WindowNetwork<K>>{});
            }
            complete<WindowNetwork<K>>(values, CompletionSequence<WindowNetwork<K>>{});
        } else {
            const FilterPlan& network = stream.plan;
            for (int row = 0; row < k; ++row) {
                for (int col = 0; col < k; ++col) {
                    values[network.wire[row * k + col]] = load<I>(stream.column(row) + place + col);
                }
            }
            run_network(values, network.merge, network.merge_size);
        }
        const F median = value_of(values[centre], stream.scale);
        F pairs[kMaxCentre];  // [d - 1]: sum of the values d ranks below and above the median
        TAM_UNROLL
        for (int d = 1; d <= centre; ++d) {
            pairs[d - 1] = value_of(values[centre - d], stream.scale) + value_of(values[centre + d], stream.scale);
        }
        F partial[4] = {pairs[0], pairs[1], pairs[2], pairs[3]};
        TAM_UNROLL
        for (int d = 4; d < centre; ++d) {
            partial[d % 4] += pairs[d];
        }
        const F sum = ((partial[0] + partial[1]) + (partial[2] + partial[3])) + median;
        F sum_of_squares = load<F>(stream.squares() + place);
        TAM_UNROLL
        for (int col = 1; col < k; ++col) {
            sum_of_squares += load<F>(stream.squares() + place + col);
        }
        store(stream.stage(kMedian) + i, median);
        TAM_UNROLL
        for (int d = 1; d <= centre; ++d) {
            store(stream.pair(d) + i, pairs[d - 1]);
        }
        store(stream.stage(kWeight) + i, weight_exponent(sum, sum_of_squares, static_cast<Scalar>(k * k)));
        if constexpr (General) {
            store(stream.stage(kSum) + i, sum);
            store(stream.stage(kSmallest) + i, values[0]);
            store(stream.stage(kLargest) + i, values[2 * centre]);
        }
    }

    // The weight of rank distance 1. Larger windows work with its exponent.
    TAM_INLINE void weigh(const Stream& stream, std::int64_t i) {
        Scalar* const weight = stream.stage(kWeight) + i;
        store(weight, exp2_minus(load<F>(weight)));
    }

    TAM_INLINE F blend(const Stream& stream, std::int64_t i) {
        const F q = load<F>(stream.stage(kWeight) + i);
        const F median = load<F>(stream.stage(kMedian) + i);
        const auto pair = [&](int distance) { return load<F>(stream.pair(distance) + i); };
        F weighted;
        F weights;
        if constexpr (K == 3) {
            // q, q^4, q^9, q^16. Below the clamp q^9 and q^16 no longer count, and with it they are no denormals.
            const F q2 = q * q;
            const F q4 = at_least<Scalar>(q2 * q2, C::smallest_weight);
            const F q8 = q4 * q4;
            const F q9 = q8 * q;
            const F q16 = q8 * q8;
            weighted = (q * pair(1) + q4 * pair(2)) + (q9 * pair(3) + q16 * pair(4));
            weights = (q + q4) + (q9 + q16);
        } else if constexpr (K == 5) {
            // q^(d^2) by the recurrence (d+1)^2 = d^2 + (2 d + 1), clamped like above.
            const F q2 = at_least<Scalar>(q * q, C::smallest_weight);
            F factor = at_least<Scalar>(q * q2, C::smallest_factor);
            F weight = q;
            weighted = weight * pair(1);
            weights = weight;
            TAM_UNROLL
            for (int d = 2; d <= kMaxCentre; ++d) {
                weight = at_least<Scalar>(weight * factor, C::smallest_product);
                factor = at_least<Scalar>(factor * q2, C::smallest_factor);
                weighted += weight * pair(d);
                weights += weight;
            }
        } else {
            // Powers this high would magnify the rounding of a q near 1: `q` is the exponent here.
            const int k = size(stream.plan);
            const int centre = k * k / 2;
            const F first = exp2_minus(q);
            weighted = first * pair(1);
            weights = first;
            for (int d = 2; d <= centre; ++d) {
                const F exponent = at_most<Scalar>(q * static_cast<Scalar>(d * d), C::negligible_exponent);
                const F weight = exp2_minus(exponent);
                weighted += weight * pair(d);
                weights += weight;
            }
        }
        F result = (median + weighted) / (weights + Scalar{0.5}) * stream.half_unscale;
        if constexpr (General) {
            const F sum = load<F>(stream.stage(kSum) + i);
            const I smallest = load<I>(stream.stage(kSmallest) + i);
            const I largest = load<I>(stream.stage(kLargest) + i);
            const I positive_finite = (bits(sum) > 0) & (bits(sum) < C::infinity);
            const I special = (bits(sum) & C::infinity) == C::infinity;
            result = from_bits((bits(result) & positive_finite) | (special & C::quiet_nan));
            const I constant = (smallest == largest) & (smallest > 0) & (smallest < C::infinity);
            if constexpr (kScaleLate) {
                // Scaled, a window of values tiny against the map may have lost bits; a constant one has to stay exact.
                result = from_bits(constant ? order_key(smallest) : bits(result));
            }
            if (stream.plan.constant_window_nan) {
                result = from_bits(constant ? I{} + C::quiet_nan : bits(result));
            }
        }
        return result;
    }

    // All windows of the blocks that next(block) has the columns of, to a sink in this order.
    template <class Next, class Sink>
    void filter(const Next& next, Sink sink) const {
        const Stream local = *this;
        Windows block;
#if TAM_LANES == 16
        if constexpr (kPipelined) {
            Pipeline pipeline;
            pipeline.column_pitch = kColumnPitch;
            pipeline.half_unscale = local.half_unscale;
            while (next(block)) {
                for (std::int64_t row = 0; row < block.rows; ++row) {
                    const std::int64_t place = block.place + row * block.pitch;
                    pipeline.template run<true>(local.column(0) + place, local.squares() + place, local.stage(0),
                                                block.count, sink);
                }
            }
            pipeline.template run<false>(local.column(0), local.squares(), local.stage(0), Pipeline::kDepth * kStep, sink);
            return;
        }
#endif
        while (next(block)) {
            std::int64_t count = 0;
            for (std::int64_t row = 0; row < block.rows; ++row) {
                const std::int64_t place = block.place + row * block.pitch;
                for (std::int64_t i = 0; i < block.count; i += kStep, count += kStep) {
                    sort(local, place + i, count);
                }
            }
            if constexpr (K == 3 || K == 5) {
                for (std::int64_t i = 0; i < count; i += kStep) {
                    weigh(local, i);
                }
            }
            for (std::int64_t i = 0; i < count; i += kStep) {
                Sink::put(sink, blend(local, i));
            }
        }
    }

    // The windows of the `length` first values of a padded stream. A sink may write over values that no column will need
    // again.
    template <class Sink>
    void filter_stream(const Scalar* padded, std::int64_t length, Sink sink) const {
#if TAM_LANES == 16
        if constexpr (kPipelined) {
            Pipeline pipeline;
            pipeline.half_unscale = half_unscale;
            return pipeline.run_stream(padded, pitch, length, memory, sink);
        }
#endif
        sort_columns(padded, 0, kAhead);
        std::int64_t begin = 0;
        const auto next = [&](Windows& block) {
            if (begin >= length) {
                return false;
            }
            if (begin != 0) {
                move_columns();
            }
            block.count = least(kBlock, length - begin);
            sort_columns(padded + begin + kAhead, kAhead, block.count);
            begin += kBlock;
            return true;
        };
        filter(next, sink);
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

    const S stream{plan, scale, static_cast<Scalar>(0.5 * plan.unscale), pitch, memory};
    stream.filter_stream(padded, height * pitch - 2 * radius, InPlace<Scalar>{padded});
    for (std::int64_t row = 0; row < height; ++row) {
        store_row(map, (tile.row_begin + row) * map.width + tile.col_begin, padded + row * pitch, width);
    }
}

#if TAM_LANES >= 8

// Scaling by this keeps every number of a window's arithmetic normal for values in the range below, and since it is a power
// of two the result has the bits that any other such scale gives.
constexpr float kPlainScale = 0x1p40f;
constexpr float kPlainSmallest = 0x1p-46f;
constexpr float kPlainLargest = 0x1p8f;

// From the largest of all values' bits and the smallest of their bits less 1.
TAM_INLINE bool is_plain(u32v largest, u32v smallest) {
    const u32v most_bits = (u32v)broadcast<f32v>(kPlainLargest);
    const u32v least_bits = (u32v)broadcast<f32v>(kPlainSmallest) - 1;
    return !any_lane((largest > most_bits) | (smallest < least_bits));
}

// Pads whole rows, contiguous in the map, in one stream. False, and nothing is worth anything, if a value is neither 0 nor
// in the plain range.
template <int Radius, class Format>
TAM_INLINE bool fill_plain(const FilterMap& map, const FilterTile& tile, float* padded) {
    using Vector = typename Format::Vector;
    const std::int64_t width = map.width;
    const std::int64_t pitch = width + 2 * Radius;
    const std::int64_t first = most(tile.row_begin - Radius, 0);
    const std::int64_t last = least(tile.row_end + Radius, map.height);
    const auto* const source = static_cast<const typename Format::Storage*>(map.input) + first * width;
    const std::int64_t available = (map.height - first) * width;
    float* const main = padded + (first - (tile.row_begin - Radius)) * pitch;
    u32v largest{};
    u32v smallest = ~u32v{};
    std::int64_t to_gap = -Radius;  // the stream begins in the middle of a gap
    std::int64_t next_row = 0;
    for (std::int64_t i = 0; i < (last - first) * pitch; i += kLanes) {
        const std::int64_t entry = Gaps<Radius>::entry(to_gap);
        const std::int64_t from = next_row - (to_gap >= kLanes ? to_gap : kGaps<Radius>.shift[entry]);
        const f32v row = __builtin_expect(from + kLanes <= available, 1)
                             ? Format::widen(load<Vector>(source + from))
                             : Format::widen(load_some<Vector>(source + from, available - from));
        const f32v value = permuted(row, load<i32v>(kGaps<Radius>.spread[entry]));
        largest = larger(largest, (u32v)row);
        smallest = smaller(smallest, (u32v)row - 1);
        store(main + i, value * kPlainScale);
        to_gap -= kLanes;
        const bool wraps = to_gap <= -2 * Radius;
        to_gap += wraps ? pitch : 0;
        next_row += wraps ? width : 0;
    }
    const auto reflect_row = [&](std::int64_t row) {
        const float* const from = main + (reflect(row, map.height) - first) * pitch;
        float* const to = padded + (row - (tile.row_begin - Radius)) * pitch;
        for (std::int64_t i = 0; i < pitch; i += kLanes) {
            const std::int64_t place = least(i, pitch - kLanes);
            store(to + place, load<f32v>(from + place));
        }
    };
    for (std::int64_t row = tile.row_begin - Radius; row < first; ++row) {
        reflect_row(row);
    }
    for (std::int64_t row = last; row < tile.row_end + Radius; ++row) {
        reflect_row(row);
    }
    return is_plain(largest, smallest);
}

// How many floats to leave before a padded stream of rows so that its rows are not read where, modulo 4096 bytes, results
// have just been stored: such loads wait. Results run up to six vectors behind, and fall back by a gap a row.
constexpr std::int64_t kPageFloats = 1024;
constexpr std::int64_t kManyPixels = 1024;  // for which this is worth its while

inline std::int64_t distance_from(const float* results, const float* rows, std::int64_t pitch, std::int64_t height) {
    constexpr std::int64_t kBehind = 6 * kLanes;
    const std::int64_t near = 4 * kLanes + least(2 * height, kPageFloats / 4);
    const std::int64_t apart =
        static_cast<std::int64_t>((reinterpret_cast<std::uintptr_t>(results) - reinterpret_cast<std::uintptr_t>(rows)) / 4);
    for (std::int64_t distance = 0; distance < kPageFloats; distance += kLanes) {
        bool clear = true;
        for (std::int64_t row = 0; row < 3; ++row) {
            clear = clear && ((apart - distance - row * pitch - kBehind) & (kPageFloats - 1)) > near;
        }
        if (clear) {
            return distance;
        }
    }
    return 0;
}

template <int K, class Format>
bool filter_as_stream(const FilterMap& map, const FilterPlan& plan, const FilterTile& tile) {
    using S = Stream<float, K, false>;
    constexpr int kRadius = K / 2;
    const std::int64_t pitch = map.width + 2 * kRadius;
    const std::int64_t height = tile.row_end - tile.row_begin;
    const std::int64_t count = height * map.width;
    const std::int64_t used = (height + 2 * kRadius) * pitch;
    const std::int64_t slack = 6 * kLanes;
    float* const memory = static_cast<float*>(scratch(
        ScratchSlot::filter, static_cast<std::size_t>(S::kMemory + kPageFloats + kLanes + used + slack) * sizeof(float)));
    float* const to = sizeof(typename Format::Storage) == sizeof(float)
                          ? static_cast<float*>(map.output) + tile.row_begin * map.width
                          : memory + S::kMemory;
    // Stores that cross cache lines are slow: the rows that the map fills are aligned.
    const std::int64_t reflected = most(kRadius - tile.row_begin, 0) * pitch;
    float* const padded = memory + S::kMemory + (round_up(reflected, kLanes) - reflected) +
                          (count >= kManyPixels ? distance_from(to, memory + S::kMemory, pitch, height) : 0);
    if (!fill_plain<kRadius, Format>(map, tile, padded)) {
        return false;
    }
    for (std::int64_t i = 0; i < slack; i += kLanes) {
        store(padded + used + i, f32v{});
    }
    const S stream{plan, kPlainScale, 0.5f / kPlainScale, pitch, memory};
    const std::int64_t length = height * pitch - 2 * kRadius;
    const std::int64_t offset = tile.row_begin * map.width;
    stream.filter_stream(padded, length, Gathered<kRadius>{to, to + count, map.width, pitch});
    if constexpr (sizeof(typename Format::Storage) != sizeof(float)) {
        store_row(map, offset, to, count);
    }
    return true;
}

// Where rows of windows go, each from its beginning on, in vectors of which the last may be a part.
template <class Format>
struct Rows {
    typename Format::Storage* to;
    std::int64_t width;
    std::int64_t pitch;
    std::int64_t left;  // at first the width

    TAM_INLINE void put(Rows& self, f32v value) {
        const auto values = Format::narrow(value);
        if (__builtin_expect(self.left >= kLanes, 1)) {
            store(self.to, values);
        } else {
            store_some(self.to, values, self.left);
        }
        self.left -= kLanes;
        self.to += kLanes;
        if (self.left <= 0) {
            self.to += self.pitch - round_up(self.width, kLanes);
            self.left = self.width;
        }
    }
};

// Blocks of rows whose columns are sorted right out of the map: no scratch, no windows across row ends, but a last vector
// of each row that may be a part. In the sorted columns every row begins a vector.
template <int K, class Format>
struct MapRows {
    using Storage = typename Format::Storage;
    using Vector = typename Format::Vector;
    using S = Stream<float, K, false, kFilterTileWidth + 16>;
    static constexpr int kRadius = K / 2;
    static_assert(S::kColumnPitch >= kFilterTileWidth + 2 * kLanes);

    const S& stream;
    const FilterMap& map;
    const FilterTile& tile;
    std::int64_t width;
    std::int64_t row;
    u32v largest{};
    u32v smallest = ~u32v{};

    bool next(Windows& block) {
        block.count = width;
        // Room before every row for its left border and after it for its right one: where they are but reflected, one vector
        // between two rows serves both.
        const bool shares_room = tile.col_begin == 0;
        block.pitch = round_up(width, kLanes) + (shares_room ? kLanes : 2 * kLanes);
        block.place = kLanes - kRadius;
        block.rows = least((S::kColumnPitch - (shares_room ? kLanes : 0)) / block.pitch, tile.row_end - row);
        for (std::int64_t i = 0; i < block.rows; ++i) {
            sort_row(row + i, kLanes + i * block.pitch);
        }
        row += block.rows;
        return block.rows > 0;
    }

    // Columns from x on of the rows that begin at `from`, a vector at a time, while `readable` of them are whole vectors.
    template <bool All>
    std::int64_t sort_whole_vectors(const Storage* const* from, std::int64_t x, std::int64_t readable, std::int64_t place) {
        const S local = stream;
        const Storage* lines[K];
        for (int i = 0; i < K; ++i) {
            lines[i] = from[i];
        }
        u32v most_bits = largest;
        u32v least_bits = smallest;
        for (; x + kLanes <= readable; x += kLanes) {
            i32v column[K];
            TAM_UNROLL
            for (int i = 0; i < K; ++i) {
                const f32v value = Format::widen(load<Vector>(lines[i] + x));
                if (All || i == K - 1) {
                    most_bits = larger(most_bits, (u32v)value);
                    least_bits = smaller(least_bits, (u32v)value - 1);
                }
                column[i] = bits(value * kPlainScale);
            }
            S::sort_column(local, column, place + x);
        }
        largest = most_bits;
        smallest = least_bits;
        return x;
    }

    __attribute__((noinline)) void sort_part(const Storage* const* from, std::int64_t x, std::int64_t readable,
                                             std::int64_t place) {
        i32v column[K];
        for (int i = 0; i < K; ++i) {
            const f32v value = Format::widen(load_some<Vector>(from[i] + x, least(readable - x, kLanes)));
            largest = larger(largest, (u32v)value);
            smallest = smaller(smallest, (u32v)value - 1);
            column[i] = bits(value * kPlainScale);
        }
        S::sort_column(stream, column, place + x);
    }

    void sort_row(std::int64_t y, std::int64_t place) {
        const Storage* from[K];
        for (int i = 0; i < K; ++i) {
            from[i] = static_cast<const Storage*>(map.input) + reflect(y - kRadius + i, map.height) * map.row_stride +
                      tile.col_begin;
        }
        const std::int64_t readable = map.width - tile.col_begin;
        const bool at_left = tile.col_begin == 0;
        const bool at_right = tile.col_end == map.width;
        const std::int64_t end = round_up(width, kLanes);
        const std::int64_t begin = at_left ? 0 : -kLanes;
        const std::int64_t whole = least(at_right ? end : end + kLanes, readable);
        std::int64_t x = y == tile.row_begin ? sort_whole_vectors<true>(from, begin, whole, place)
                                             : sort_whole_vectors<false>(from, begin, whole, place);
        // In part beyond the row: in the room for its right border.
        for (; x < end || (!at_right && x < width + kRadius); x += kLanes) {
            sort_part(from, x, readable, place);
        }
        for (int i = 0; i <= K; ++i) {
            float* const row_of_columns = stream.memory + i * S::kColumnPitch + place;
            for (int border = 1; border <= kRadius; ++border) {
                if (at_left) {
                    row_of_columns[-border] = row_of_columns[border];
                }
                if (at_right) {
                    row_of_columns[width - 1 + border] = row_of_columns[width - 1 - border];
                }
            }
        }
    }
};

template <int K, class Format>
bool filter_as_rows(const FilterMap& map, const FilterPlan& plan, const FilterTile& tile) {
    using Source = MapRows<K, Format>;
    using S = typename Source::S;
    float* const memory =
        static_cast<float*>(scratch(ScratchSlot::filter, static_cast<std::size_t>(S::kMemory + 2 * kLanes) * sizeof(float)));
    const S stream{plan, kPlainScale, 0.5f / kPlainScale, 0, memory};
    const std::int64_t width = tile.col_end - tile.col_begin;
    Source source{stream, map, tile, width, tile.row_begin};
    auto* const to = static_cast<typename Format::Storage*>(map.output) + tile.row_begin * map.width + tile.col_begin;
    const auto next = [&](Windows& block) { return source.next(block); };
    stream.filter(next, Rows<Format>{to, width, map.width, width});
    return is_plain(source.largest, source.smallest);
}

template <int K, class Format>
bool filter_plain(const FilterMap& map, const FilterPlan& plan, const FilterTile& tile) {
    const std::int64_t width = tile.col_end - tile.col_begin;
    const bool whole = width == map.width && (map.row_stride == width || map.height == 1);
    return whole ? filter_as_stream<K, Format>(map, plan, tile) : filter_as_rows<K, Format>(map, plan, tile);
}

template <int K>
bool filter_plain(const FilterMap& map, const FilterPlan& plan, const FilterTile& tile) {
    if (map.col_stride != 1 || tile.col_end - tile.col_begin < kLanes) {
        return false;
    }
    switch (map.dtype) {
        case DType::f32: return filter_plain<K, Float32>(map, plan, tile);
        case DType::f16: return filter_plain<K, Float16>(map, plan, tile);
        case DType::bf16: return filter_plain<K, BFloat16>(map, plan, tile);
        case DType::f64: break;
    }
    return false;
}

#endif

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

// The common case in one pass over the tile; false where it is another one, and the output then remains to be written.
bool TAM_NAME(rank_gaussian_filter_plain)([[maybe_unused]] const FilterMap& map, [[maybe_unused]] int kernel_size,
                                          [[maybe_unused]] const FilterTile& tile) {
#if TAM_LANES >= 8
    FilterPlan plan;
    plan.kernel_size = kernel_size;
    switch (kernel_size) {
        case 3: return filter_plain<3>(map, plan, tile);
        case 5: return filter_plain<5>(map, plan, tile);
        case 7: return filter_plain<7>(map, plan, tile);
        default: return false;
    }
#else
    return false;
#endif
}

void TAM_NAME(rank_gaussian_filter_f64)(const FilterMap& map, const FilterPlan& plan, const FilterTile& tile) {
    filter_tile_of_size<double, true>(map, plan, tile);
}

}  // namespace
}  // namespace tam::cpu::TAM_ISA
