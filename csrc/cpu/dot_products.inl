// <target, interference> and <interference, interference> in float64, for one instruction set.

namespace tam::cpu::TAM_ISA {
namespace {

constexpr int kPartialLanes = 16;  // of sums in float64: element i goes to lane i mod 16, in order
constexpr int kHalf = kLanes / 2;  // as many float64 as a vector holds

TAM_INLINE f64v widened(f32h values) {
#if TAM_LANES == 16
    return (f64v)_mm512_cvtps_pd((__m256)values);  // GCC converts halves and joins them
#else
    return __builtin_convertvector(values, f64v);
#endif
}

// Adds the partial lanes in a fixed tree.
TAM_INLINE double sum_of_lanes(const f64v (&parts)[kPartialLanes / kHalf]) {
    double lanes[kPartialLanes];
    std::memcpy(lanes, parts, sizeof lanes);
    for (int half = kPartialLanes / 2; half > 0; half /= 2) {
        for (int lane = 0; lane < half; ++lane) {
            lanes[lane] += lanes[lane + half];
        }
    }
    return lanes[0];
}

class DotProducts {
  public:
    template <class Scalar>
    TAM_INLINE double scale(const Scalar* target, const Scalar* interference, std::int64_t size) {
        DotProducts sums;
        std::int64_t i = 0;
        for (; i + kPartialLanes <= size; i += kPartialLanes) {
            sums.add(target + i, interference + i);
        }
        if (i < size) {
            Scalar target_tail[kPartialLanes] = {};
            Scalar interference_tail[kPartialLanes] = {};
            std::memcpy(target_tail, target + i, static_cast<std::size_t>(size - i) * sizeof(Scalar));
            std::memcpy(interference_tail, interference + i, static_cast<std::size_t>(size - i) * sizeof(Scalar));
            sums.add(target_tail, interference_tail);
        }
        const double denominator = sum_of_lanes(sums.interference_interference_);
        return denominator == 0.0 ? 0.0 : sum_of_lanes(sums.target_interference_) / denominator;
    }

  private:
    static constexpr int kParts = kPartialLanes / kHalf;

    TAM_INLINE f64v load_wide(const float* from) { return widened(load<f32h>(from)); }
    TAM_INLINE f64v load_wide(const double* from) { return load<f64v>(from); }

    // The product of two float32 is exact in float64: fused or not, the sum is rounded once.
    template <class Scalar>
    TAM_INLINE f64v add_product(f64v a, f64v b, f64v sum) {
#if TAM_LANES == 16
        if constexpr (sizeof(Scalar) == sizeof(float)) {
            return (f64v)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)sum);
        }
#elif TAM_LANES == 8
        if constexpr (sizeof(Scalar) == sizeof(float)) {
            return (f64v)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)sum);
        }
#endif
        return sum + a * b;
    }

    template <class Scalar>
    inline __attribute__((always_inline)) void add(const Scalar* target, const Scalar* interference) {
        TAM_UNROLL
        for (int part = 0; part < kParts; ++part) {
            const f64v t = load_wide(target + part * kHalf);
            const f64v e = load_wide(interference + part * kHalf);
            target_interference_[part] = add_product<Scalar>(t, e, target_interference_[part]);
            interference_interference_[part] = add_product<Scalar>(e, e, interference_interference_[part]);
        }
    }

    f64v target_interference_[kParts] = {};
    f64v interference_interference_[kParts] = {};
};

}  // namespace
}  // namespace tam::cpu::TAM_ISA
