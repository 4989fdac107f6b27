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

// 2^-f for f in [-0.5, 0.5]: minimax with the constant term fixed at 1; relative error 1.2e-7.
struct Exp2 {
    static constexpr float c1 = -0.69314694f, c2 = 0.24022107f, c3 = -0.055506341f, c4 = 0.0096758130f, c5 = -0.0013283886f;
};

TAM_INLINE f32v exp2_fraction(f32v f) {
    const f32v f2 = f * f;
    const f32v low = 1.0f + f * Exp2::c1;
    const f32v middle = Exp2::c2 + f * Exp2::c3;
    const f32v high = Exp2::c4 + f * Exp2::c5;
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

// -------------------------------------------------------------------------------------------------- rows in a stream

// In the stream of a padded tile the rows of a map are `gaps` of 2 Radius values apart, the reflected borders. A vector holds
// at most part of one gap where a row is no shorter than a vector. These tables say, for a gap that begins at lane `begin`
// (it may have begun before the vector), how to make such a vector from as many values of the map in a row, and back.
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
            float values[kLanes];
            store(values, row);
            std::memcpy(self.to, values, static_cast<std::size_t>(least(room, valid)) * sizeof(float));
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
    const std::int32_t* columns;
    std::int64_t column_pitch;
    const float* squares;
    float* sorted;
    const float* spread;
    const float* blended;
    float half_unscale;
    f32v square;
    f32v exponent;
    f32v weight;
    // Within an iteration.
    i32v l0, l1, l2, m0, m1, m2, h0, h1, h2;
    f32v next_square, next_exponent, sum, pairs, product;
    f32v shifted, fraction, fraction2, low, middle, high;
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

    // neighbour_weight
    template <int Step>
    TAM_INLINE void find_weight(Pipeline& p) {
        if constexpr (Step == 0) {
            p.shifted = p.exponent + C::to_integer;
        } else if constexpr (Step == 1) {
            p.fraction = p.shifted - C::to_integer;
        } else if constexpr (Step == 2) {
            p.fraction = p.exponent - p.fraction;
        } else if constexpr (Step == 4) {
            p.fraction2 = p.fraction * p.fraction;
            p.high = p.fraction * Exp2::c5;
        } else if constexpr (Step == 5) {
            p.middle = p.fraction * Exp2::c3;
            p.high = Exp2::c4 + p.high;
        } else if constexpr (Step == 6) {
            p.low = p.fraction * Exp2::c1;
            p.middle = Exp2::c2 + p.middle;
        } else if constexpr (Step == 7) {
            p.high = p.fraction2 * p.high;
            p.low = 1.0f + p.low;
        } else if constexpr (Step == 8) {
            p.middle += p.high;
        } else if constexpr (Step == 10) {
            p.middle = p.fraction2 * p.middle;
        } else if constexpr (Step == 11) {
            p.low += p.middle;
        } else if constexpr (Step == 14) {
            p.shifted = from_bits(bits(p.shifted) << C::mantissa_bits);
        } else if constexpr (Step == 15) {
            p.low = from_bits(bits(p.low) - bits(p.shifted));
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

    template <bool Sorts, int... Step>
    TAM_INLINE void run_steps(Pipeline& p, std::integer_sequence<int, Step...>) {
        const auto step = [&](auto number) TAM_ALWAYS_INLINE {
            constexpr int kStep = decltype(number)::value;
            find_exponent<kStep>(p);
            blend<kStep>(p);
            find_weight<kStep>(p);
            if constexpr (Sorts) {
                sort<kStep>(p);
            }
        };
        (step(std::integral_constant<int, Step>{}), ...);
    }

    // Sorts is false for the last vectors, when only the other stages still have work.
    template <bool Sorts>
    TAM_INLINE void advance(Pipeline& p, const std::int32_t* columns, const float* squares, float* slots, std::int64_t vector) {
        p.columns = columns;
        p.squares = squares;
        p.sorted = slots + (vector & (kSlots - 1)) * kSlotSize;
        p.spread = slots + ((vector - 1) & (kSlots - 1)) * kSlotSize;
        p.blended = slots + ((vector - kDepth) & (kSlots - 1)) * kSlotSize;
        run_steps<Sorts>(p, std::make_integer_sequence<int, kSteps>{});
        p.weighted = in_register(p.weighted);
        p.square = p.next_square;
        p.exponent = p.next_exponent;
        p.weight = p.low;
    }
};

#endif

// ------------------------------------------------------------------------------------------------------ the stream

// K is the kernel size, or 0 for one known at run time. General: values are order keys and may be negative or special.
//
// Windows go through three stages, `sort`, `weigh` and `blend`, a block at a time: each stage alone is short enough to
// overlap with its neighbours in a processor that runs out of order, all of them in a row are one chain of latencies.
// What passes from stage to stage lies in rows of `kBlock` values beside the block's sorted columns.
template <class Scalar, int K, bool General>
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
    static constexpr std::int64_t kBlock = kPipelined ? 160 : K == 3 ? 96 : K == 0 ? 32 : 64;
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

    // Columns of `padded` from its beginning on, to place `first` of the sorted columns.
    void sort_columns(const Scalar* padded, std::int64_t first, std::int64_t length) const {
        const int k = size(plan);
        const IntScalar* const keys = reinterpret_cast<const IntScalar*>(padded);
        for (std::int64_t i = 0; i < length; i += kStep) {
            I values[kMaxK];
            TAM_UNROLL
            for (int row = 0; row < k; ++row) {
                values[row] = load<I>(keys + i + row * pitch);
            }
            F sum{};
            TAM_UNROLL
            for (int row = 0; row < k; ++row) {
                const F value = value_of(values[row], scale);
                sum = row == 0 ? value * value : sum + value * value;
            }
            store(squares() + first + i, sum);
            if constexpr (K != 0) {
                sort_line<WindowNetwork<K>>(values, LineSequence<WindowNetwork<K>>{});
            } else {
                run_network(values, plan.line, plan.line_size);
            }
            TAM_UNROLL
            for (int row = 0; row < k; ++row) {
                store(column(row) + first + i, values[row]);
            }
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

    TAM_INLINE void sort(const Stream& stream, std::int64_t i) {
        const int k = size(stream.plan);
        const int centre = k * k / 2;
        I values[kMaxK * kMaxK];
        if constexpr (K != 0) {
            TAM_UNROLL
            for (int row = 0; row < K; ++row) {
                TAM_UNROLL
                for (int col = 0; col < K; ++col) {
                    values[row * K + col] = load<I>(stream.column(row) + i + col);
                }
                sort_line<WindowNetwork<K>>(values + row * K, LineSequence<WindowNetwork<K>>{});
            }
            complete<WindowNetwork<K>>(values, CompletionSequence<WindowNetwork<K>>{});
        } else {
            const FilterPlan& network = stream.plan;
            for (int row = 0; row < k; ++row) {
                for (int col = 0; col < k; ++col) {
                    values[network.wire[row * k + col]] = load<I>(stream.column(row) + i + col);
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
        F sum_of_squares = load<F>(stream.squares() + i);
        TAM_UNROLL
        for (int col = 1; col < k; ++col) {
            sum_of_squares += load<F>(stream.squares() + i + col);
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
        store(weight, neighbour_weight<Scalar>(load<F>(weight)));
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
            const F first = neighbour_weight<Scalar>(q);
            weighted = first * pair(1);
            weights = first;
            for (int d = 2; d <= centre; ++d) {
                const F exponent = at_most<Scalar>(q * static_cast<Scalar>(d * d), C::negligible_exponent);
                const F weight = neighbour_weight<Scalar>(exponent);
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

    // Calls work(count) for every block of windows, with its columns sorted.
    template <class Work>
    TAM_INLINE void for_each_block(const Stream& stream, const Scalar* padded, std::int64_t length, const Work& work) {
        stream.sort_columns(padded, 0, kAhead);
        for (std::int64_t begin = 0; begin < length; begin += kBlock) {
            const std::int64_t count = least(kBlock, length - begin);
            if (begin != 0) {
                stream.move_columns();
            }
            stream.sort_columns(padded + begin + kAhead, kAhead, count);
            work(count);
        }
    }

    // The windows of the stream's `length` first values. A sink may write over values that no column will need again.
    template <class Sink>
    void filter(const Scalar* padded, std::int64_t length, Sink sink) const {
        const Stream local = *this;
#if TAM_LANES == 16
        if constexpr (kPipelined) {
            Pipeline pipeline{};
            pipeline.column_pitch = kColumnPitch;
            pipeline.half_unscale = local.half_unscale;
            std::int64_t vector = 0;
            const auto advance = [&](std::int64_t i, auto sorts) TAM_ALWAYS_INLINE {
                Pipeline::advance<decltype(sorts)::value>(pipeline, local.column(0) + i, local.squares() + i, local.stage(0), vector);
                if (vector >= Pipeline::kDepth) {
                    Sink::put(sink, pipeline.weighted);
                }
                ++vector;
            };
            for_each_block(local, padded, length, [&](std::int64_t count) TAM_ALWAYS_INLINE {
                for (std::int64_t i = 0; i < count; i += kStep) {
                    advance(i, std::true_type{});
                }
            });
            for (std::int64_t i = 0; i < Pipeline::kDepth; ++i) {
                advance(0, std::false_type{});
            }
            return;
        }
#endif
        for_each_block(local, padded, length, [&](std::int64_t count) TAM_ALWAYS_INLINE {
            for (std::int64_t i = 0; i < count; i += kStep) {
                sort(local, i);
            }
            if constexpr (K == 3 || K == 5) {
                for (std::int64_t i = 0; i < count; i += kStep) {
                    weigh(local, i);
                }
            }
            for (std::int64_t i = 0; i < count; i += kStep) {
                Sink::put(sink, blend(local, i));
            }
        });
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
    fill_rows(map, tile, radius, pitch, padded, [=, &map](std::int64_t row, std::int64_t from, std::int64_t count, float* to) {
        const Storage* const source = values + row * map.row_stride + from;
        const auto read = [=](std::int64_t i) { return widen(load<Vector>(source + i)); };
        prepare_apart<General>(read, to, count, scale);
    });
}

template <bool General>
void fill(const FilterMap& map, const FilterTile& tile, std::int64_t radius, std::int64_t pitch, float scale, float* padded) {
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
    const std::int64_t slack = S::kAhead + 2 * kLanes;
    Scalar* const memory = static_cast<Scalar*>(
        scratch(ScratchSlot::filter, static_cast<std::size_t>(S::kMemory + used + slack) * sizeof(Scalar)));
    Scalar* const padded = memory + S::kMemory;

    const Scalar scale = static_cast<Scalar>(plan.scale);
    fill<General>(map, tile, radius, pitch, scale, padded);
    std::memset(padded + used, 0, static_cast<std::size_t>(slack) * sizeof(Scalar));

    const S stream{plan, scale, static_cast<Scalar>(0.5 * plan.unscale), pitch, memory};
    stream.filter(padded, height * pitch - 2 * radius, InPlace<Scalar>{padded});
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

// Pads whole rows, contiguous in the map, in one stream. False, and nothing is worth anything, if a value is neither 0 nor in
// the plain range.
template <int Radius, class Vector, class Storage, class Widen>
TAM_INLINE bool fill_plain(const FilterMap& map, const FilterTile& tile, const Storage* values, const Widen& widen,
                           float* padded) {
    const std::int64_t width = map.width;
    const std::int64_t pitch = width + 2 * Radius;
    const std::int64_t first = most(tile.row_begin - Radius, 0);
    const std::int64_t last = least(tile.row_end + Radius, map.height);
    const Storage* const source = values + first * width;
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
                             ? widen(load<Vector>(source + from))
                             : widen(load_some<Vector>(source + from, available - from));
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
    const u32v most_bits = (u32v)broadcast<f32v>(kPlainLargest);
    const u32v least_bits = (u32v)broadcast<f32v>(kPlainSmallest) - 1;
    return !any_lane((largest > most_bits) | (smallest < least_bits));
}

template <int K>
bool filter_plain_tile(const FilterMap& map, const FilterPlan& plan, const FilterTile& tile) {
    using S = Stream<float, K, false>;
    constexpr int kRadius = K / 2;
    const std::int64_t pitch = map.width + 2 * kRadius;
    const std::int64_t height = tile.row_end - tile.row_begin;
    const std::int64_t used = (height + 2 * kRadius) * pitch;
    const std::int64_t slack = S::kAhead + 2 * kLanes;
    float* const memory = static_cast<float*>(
        scratch(ScratchSlot::filter, static_cast<std::size_t>(S::kMemory + kLanes + used + slack) * sizeof(float)));
    // Stores that cross cache lines are slow: the rows that the map fills are aligned.
    const std::int64_t reflected = most(kRadius - tile.row_begin, 0) * pitch;
    float* const padded = memory + S::kMemory + (round_up(reflected, kLanes) - reflected);
    const std::uint16_t* const patterns = static_cast<const std::uint16_t*>(map.input);
    bool plain = false;
    if (map.dtype == DType::f32) {
        plain = fill_plain<kRadius, f32v>(map, tile, static_cast<const float*>(map.input), [](f32v value) { return value; },
                                          padded);
    } else if (map.dtype == DType::f16) {
        plain = fill_plain<kRadius, u16v>(map, tile, patterns, [](u16v pattern) { return f32_from_f16(pattern); }, padded);
    } else {
        plain = fill_plain<kRadius, u16v>(map, tile, patterns, [](u16v pattern) { return f32_from_bf16(pattern); }, padded);
    }
    if (!plain) {
        return false;
    }
    for (std::int64_t i = 0; i < slack; i += kLanes) {
        store(padded + used + i, f32v{});
    }
    const S stream{plan, kPlainScale, 0.5f / kPlainScale, pitch, memory};
    const std::int64_t length = height * pitch - 2 * kRadius;
    const std::int64_t count = height * map.width;
    const std::int64_t offset = tile.row_begin * map.width;
    if (map.dtype == DType::f32) {
        float* const to = static_cast<float*>(map.output) + offset;
        stream.filter(padded, length, Gathered<kRadius>{to, to + count, map.width, pitch});
    } else {
        stream.filter(padded, length, Gathered<kRadius>{padded, padded + count, map.width, pitch});
        store_row(map, offset, padded, count);
    }
    return true;
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
    const bool whole_rows = map.col_stride == 1 && (map.row_stride == map.width || map.height == 1) &&
                            tile.col_begin == 0 && tile.col_end == map.width;
    if (map.dtype == DType::f64 || !whole_rows || map.width < kLanes) {
        return false;
    }
    FilterPlan plan;
    plan.kernel_size = kernel_size;
    switch (kernel_size) {
        case 3: return filter_plain_tile<3>(map, plan, tile);
        case 5: return filter_plain_tile<5>(map, plan, tile);
        case 7: return filter_plain_tile<7>(map, plan, tile);
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
