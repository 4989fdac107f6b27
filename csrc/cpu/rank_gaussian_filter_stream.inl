// Rank Gaussian filter: windows of sorted columns, block by block, for one instruction set.

namespace tam::cpu::TAM_ISA {
namespace {

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
            return pipeline.run_streams(padded, pitch, InOrder{}, (length + kStep - 1) / kStep, memory,
                                        InPlaceInOrder{sink.to});
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

}  // namespace
}  // namespace tam::cpu::TAM_ISA
