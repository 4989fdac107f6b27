// Rank Gaussian filter: the arithmetic of a window and its sorting networks, for one instruction set.

namespace tam::cpu::TAM_ISA {
namespace {

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

}  // namespace
}  // namespace tam::cpu::TAM_ISA
