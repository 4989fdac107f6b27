// Rank Gaussian filter: rows of a map in a padded stream and back, for one instruction set.

namespace tam::cpu::TAM_ISA {
namespace {

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

}  // namespace
}  // namespace tam::cpu::TAM_ISA
