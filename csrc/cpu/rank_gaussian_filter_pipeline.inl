// Rank Gaussian filter: the 3x3 window with its stages interleaved, for one instruction set.

namespace tam::cpu::TAM_ISA {
namespace {

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
    float half_unscale = 0.0f;  // a power of two; its inverse times the weights must not overflow, nor results underflow
    f32v scale{};               // the inverse, and half of it
    f32v half_scale{};
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
            // Times a power of two: exact, and the result comes out unscaled.
            p.weights = fma(p.weights, p.scale, p.half_scale);
        } else if constexpr (Step == 11) {
            p.weighted = load<f32v>(slot) + p.weighted;
        } else if constexpr (Step == 12) {
            p.weighted /= p.weights;
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
        p.scale = broadcast<f32v>(1.0f / half_unscale);
        p.half_scale = broadcast<f32v>(0.5f / half_unscale);
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

    // The windows of `vectors` vectors of padded streams, columns and all. Vector i begins at order.begin(i); kAhead more of
    // them are read.
    template <class Order, class Sink>
    __attribute__((noinline)) void run_streams(const float* padded, std::int64_t pitch, const Order& order,
                                               std::int64_t vectors, float* memory, Sink sink) {
        Pipeline p;
        p.column_pitch = kRingPitch;
        p.scale = broadcast<f32v>(1.0f / half_unscale);
        p.half_scale = broadcast<f32v>(0.5f / half_unscale);
        p.square = p.next_square = f32v{};
        p.exponent = f32v{};
        p.weight = f32v{};
        float* const slots = memory + 4 * kRingPitch;
        const auto place = [&](std::int64_t number) TAM_ALWAYS_INLINE {
            const float* const from = padded + order.begin(number);
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
                Sink::put(sink, order, number - kDepth, result);
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

}  // namespace
}  // namespace tam::cpu::TAM_ISA
