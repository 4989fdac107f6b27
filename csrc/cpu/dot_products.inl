// <target, interference> and <interference, interference> in float64, for one instruction set.

namespace tam::cpu::TAM_ISA {
namespace {

// Sixteen fixed partial lanes (element i goes to lane i mod 16, in order), added in a fixed tree. Products of two float32
// are exact in float64, which leaves nothing for a fused multiply-add to change.
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
        const double denominator = sum(sums.interference_interference_);
        return denominator == 0.0 ? 0.0 : sum(sums.target_interference_) / denominator;
    }

  private:
    static constexpr int kPartialLanes = 16;
    static constexpr int kStep = kLanes / 2;
    static constexpr int kParts = kPartialLanes / kStep;

    TAM_INLINE f64v load_wide(const float* from) { return __builtin_convertvector(load<f32h>(from), f64v); }
    TAM_INLINE f64v load_wide(const double* from) { return load<f64v>(from); }

    template <class Scalar>
    inline __attribute__((always_inline)) void add(const Scalar* target, const Scalar* interference) {
        TAM_UNROLL
        for (int part = 0; part < kParts; ++part) {
            const f64v t = load_wide(target + part * kStep);
            const f64v e = load_wide(interference + part * kStep);
            target_interference_[part] += t * e;
            interference_interference_[part] += e * e;
        }
    }

    TAM_INLINE double sum(const f64v (&parts)[kParts]) {
        double lanes[kPartialLanes];
        std::memcpy(lanes, parts, sizeof lanes);
        for (int half = kPartialLanes / 2; half > 0; half /= 2) {
            for (int lane = 0; lane < half; ++lane) {
                lanes[lane] += lanes[lane + half];
            }
        }
        return lanes[0];
    }

    f64v target_interference_[kParts] = {};
    f64v interference_interference_[kParts] = {};
};

}  // namespace
}  // namespace tam::cpu::TAM_ISA
