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

TAM_INLINE std::int64_t all_ones_if(bool condition) {
    return -static_cast<std::int64_t>(condition);
}

#if TAM_LANES >= 8

// How the vectors of the padded stream of a tile are made out of the rows of a map. Tables leave no branches on where rows
// end, which a processor cannot foretell when it comes from other work.
template <int Radius>
class Spreading {
  public:
    // At least `vectors` of them, for rows of `width`, as this thread last used them.
    __attribute__((noinline)) static const Spreading& of(std::int64_t width, std::int64_t vectors) {
        thread_local Spreading cached;
        if (cached.width_ != width || cached.vectors_ < vectors) {
            cached.make(width, vectors);
        }
        return cached;
    }

    std::int64_t from(std::int64_t vector) const { return from_[vector]; }  // where in the map
    const std::int32_t* lanes(std::int64_t vector) const { return &kGaps<Radius>.spread[0][0] + lanes_[vector]; }

  private:
    static constexpr std::int64_t kMost =
        kFilterTileWidth + (kFilterTilePixels / kLanes + 2 * Radius) * (kLanes + 2 * Radius) / kLanes;
    std::int64_t width_;
    std::int64_t vectors_;
    std::uint16_t from_[kMost];
    std::uint16_t lanes_[kMost];

    void make(std::int64_t width, std::int64_t vectors) {
        width_ = width;
        vectors_ = vectors;
        const std::int64_t pitch = width + 2 * Radius;
        std::int64_t to_gap = -Radius;  // the stream begins in the middle of a gap
        std::int64_t next_row = 0;
        for (std::int64_t i = 0; i < vectors; ++i) {
            const std::int64_t entry = Gaps<Radius>::entry(to_gap);
            from_[i] = static_cast<std::uint16_t>(next_row - (to_gap >= kLanes ? to_gap : kGaps<Radius>.shift[entry]));
            lanes_[i] = static_cast<std::uint16_t>(entry * kLanes);
            to_gap -= kLanes;
            const bool wraps = to_gap <= -2 * Radius;
            to_gap += wraps ? pitch : 0;
            next_row += wraps ? width : 0;
        }
    }
};

#endif

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

// Loads `count` values, all lanes or fewer, and zeros.
template <class V, class T>
TAM_INLINE V load_first(const T* from, std::int64_t count) {
#if TAM_LANES == 16
    return load_some(from, most(count, 0));
#else
    T values[sizeof(V) / sizeof(T)] = {};
    if (count > 0) {
        std::memcpy(values, from, static_cast<std::size_t>(least(count, kLanes)) * sizeof(T));
    }
    return load<V>(values);
#endif
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

#if TAM_LANES == 16

// Padded streams of maps that are filtered as one, without a pause between them: where each vector is, and where its
// windows go without the gaps. What a map's last vector has too much, the next map's first one overwrites.
template <int Radius>
class Gathering {
  public:
    // For `maps` maps or more whose padded streams are `next` values apart, as this thread last used it.
    __attribute__((noinline)) static const Gathering& of(std::int64_t width, std::int64_t height, std::int64_t maps,
                                                         std::int64_t next) {
        thread_local Gathering cached;
        if (cached.width_ != width || cached.height_ != height || cached.maps_ < maps) {
            cached.make(width, height, maps, next);
        }
        return cached;
    }

    static std::int64_t vectors(std::int64_t width, std::int64_t height) {
        return (height * (width + 2 * Radius) + kLanes - 1) / kLanes;
    }
    std::int64_t begin(std::int64_t vector) const { return begin_[vector]; }
    std::int64_t to(std::int64_t vector) const { return to_[vector]; }
    std::int64_t entry(std::int64_t vector) const { return entry_[vector]; }  // of Gaps

  private:
    static constexpr std::int64_t kMost =
        kFilterTileWidth + kMostMaps + kFilterTilePixels / kLanes * (kLanes + 2 * Radius) / kLanes;
    std::int64_t width_;
    std::int64_t height_;
    std::int64_t maps_;
    std::uint16_t begin_[kMost + Pipeline::kAhead];
    std::uint16_t to_[kMost];
    std::uint16_t entry_[kMost];

    void make(std::int64_t width, std::int64_t height, std::int64_t maps, std::int64_t next) {
        width_ = width;
        height_ = height;
        maps_ = maps;
        const std::int64_t pitch = width + 2 * Radius;
        const std::int64_t vectors_of_map = vectors(width, height);
        std::int64_t number = 0;
        for (std::int64_t map = 0; map < maps; ++map) {
            std::int64_t to_gap = width;
            std::int64_t place = map * width * height;
            for (std::int64_t i = 0; i < vectors_of_map; ++i, ++number) {
                const std::int64_t gap = Gaps<Radius>::entry(to_gap);
                begin_[number] = static_cast<std::uint16_t>(map * next + i * kLanes);
                to_[number] = static_cast<std::uint16_t>(place);
                entry_[number] = static_cast<std::uint16_t>(gap);
                place += kGaps<Radius>.valid[gap];
                to_gap -= kLanes;
                to_gap += to_gap <= -2 * Radius ? pitch : 0;
            }
        }
        for (std::int64_t i = 0; i < Pipeline::kAhead; ++i) {
            begin_[number + i] = begin_[number - 1];
        }
    }
};

template <int Radius>
struct GatheredMaps {
    float* to;
    std::int64_t size;  // of all maps

    TAM_INLINE void put(GatheredMaps& self, const Gathering<Radius>& gathering, std::int64_t vector, f32v value) {
        const std::int64_t place = gathering.to(vector);
        const std::int64_t entry = gathering.entry(vector);
        const f32v row = permuted(value, load<i32v>(kGaps<Radius>.gather[entry]));
        const std::int64_t room = self.size - place;
        if (__builtin_expect(room >= kLanes, 1)) {
            store(self.to + place, row);
        } else if (room > 0) {
            store_some(self.to + place, row, least(room, kGaps<Radius>.valid[entry]));
        }
    }
};

// A single stream from its beginning to its end, in place.
struct InOrder {
    std::int64_t begin(std::int64_t vector) const { return vector * kLanes; }
};

struct InPlaceInOrder {
    float* to;

    TAM_INLINE void put(InPlaceInOrder& self, const InOrder&, std::int64_t vector, f32v value) {
        store(self.to + vector * kLanes, value);
    }
};

#endif

}  // namespace
}  // namespace tam::cpu::TAM_ISA
