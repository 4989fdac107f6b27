// Rank Gaussian filter: tiles of plain values in one pass, for one instruction set.

namespace tam::cpu::TAM_ISA {
namespace {

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

// Vectors of a tile's padded stream that are made out of rows of the map, the others being reflections of these.
template <int Radius>
TAM_INLINE std::int64_t spread_vectors(const FilterMap& map, const FilterTile& tile) {
    const std::int64_t rows = least(tile.row_end + Radius, map.height) - most(tile.row_begin - Radius, 0);
    return (rows * (map.width + 2 * Radius) + kLanes - 1) / kLanes;
}

// Pads whole rows, contiguous in the map, in one stream. False, and nothing is worth anything, if a value is neither 0 nor
// in the plain range.
template <int Radius, class Format>
TAM_INLINE bool fill_plain(const FilterMap& map, const FilterTile& tile, const Spreading<Radius>& spreading, float* padded) {
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
    const auto put = [&](std::int64_t i, const auto& read) TAM_ALWAYS_INLINE {
        const f32v row = Format::widen(read(spreading.from(i)));
        const f32v value = permuted(row, load<i32v>(spreading.lanes(i)));
        largest = larger(largest, (u32v)row);
        smallest = smaller(smallest, (u32v)row - 1);
        store(main + i * kLanes, value * kPlainScale);
    };
    const std::int64_t vectors = spread_vectors<Radius>(map, tile);
    std::int64_t i = 0;
    for (; i < vectors - 2; ++i) {
        put(i, [=](std::int64_t from) TAM_ALWAYS_INLINE { return load<Vector>(source + from); });
    }
    // Behind the last two vectors' values there may be less than a vector of others.
    for (; i < vectors; ++i) {
        put(i, [=](std::int64_t from) TAM_ALWAYS_INLINE { return load_first<Vector>(source + from, available - from); });
    }
    const auto reflect_row = [&](std::int64_t row) {
        const float* const from = main + (reflect(row, map.height) - first) * pitch;
        float* const to = padded + (row - (tile.row_begin - Radius)) * pitch;
        for (std::int64_t x = 0; x < pitch; x += kLanes) {
            const std::int64_t place = least(x, pitch - kLanes);
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
// have just been stored: such loads wait. Results run up to six vectors behind, and `fall` back in the end.
constexpr std::int64_t kPageFloats = 1024;
constexpr std::int64_t kManyPixels = 1024;  // for which this is worth its while

inline std::int64_t distance_from(const float* results, const float* rows, std::int64_t pitch, std::int64_t fall) {
    constexpr std::int64_t kBehind = 6 * kLanes;
    const std::int64_t near = 4 * kLanes + least(fall, kPageFloats / 4);
    const std::int64_t apart =
        static_cast<std::int64_t>((reinterpret_cast<std::uintptr_t>(results) - reinterpret_cast<std::uintptr_t>(rows)) / 4);
    std::int64_t distance = 0;
    for (std::int64_t row = 0, clear = 0; clear < 3 && distance < kPageFloats; row = row == 2 ? 0 : row + 1) {
        const std::int64_t behind = (apart - distance - row * pitch - kBehind) & (kPageFloats - 1);
        const std::int64_t too_near = all_ones_if(behind <= near);
        distance += too_near & round_up(behind + 1, kLanes);  // to where this row is just clear
        clear = (clear + 1) & ~too_near;
    }
    return distance < kPageFloats ? distance : 0;
}

// The same tile of maps whose results follow one another, one stream behind the other. Bits of the result tell which maps
// were plain.
template <int K, class Format>
std::uint32_t filter_as_streams(const FilterMap* maps, int maps_count, const FilterPlan& plan, const FilterTile& tile) {
    using S = Stream<float, K, false>;
    constexpr int kRadius = K / 2;
    const std::int64_t width = maps[0].width;
    const std::int64_t pitch = width + 2 * kRadius;
    const std::int64_t height = tile.row_end - tile.row_begin;
    const std::int64_t map_size = height * width;
    const std::int64_t count = maps_count * map_size;
    const std::int64_t used = (height + 2 * kRadius) * pitch;
    const std::int64_t next = round_up(used, kLanes);
    const std::int64_t slack = 6 * kLanes;
    const std::int64_t ahead = 3 * kLanes + 2 * kRadius * pitch;  // read, where another map might follow
    const std::int64_t needed = S::kMemory + kPageFloats + kLanes + maps_count * next + slack + ahead;
    float* const memory =
        static_cast<float*>(scratch(ScratchSlot::filter, static_cast<std::size_t>(needed) * sizeof(float)));
    float* const to = sizeof(typename Format::Storage) == sizeof(float)
                          ? static_cast<float*>(maps[0].output) + tile.row_begin * width
                          : memory + S::kMemory;
    // Stores that cross cache lines are slow: the rows that the map fills are aligned.
    const std::int64_t reflected = most(kRadius - tile.row_begin, 0) * pitch;
    const std::int64_t fall = 2 * kRadius * height + (maps_count - 1) * (next - map_size);
    float* const padded = memory + S::kMemory + (round_up(reflected, kLanes) - reflected) +
                          (count >= kManyPixels ? distance_from(to, memory + S::kMemory, pitch, fall) : 0);
    const auto& spreading = Spreading<kRadius>::of(width, spread_vectors<kRadius>(maps[0], tile));
    std::uint32_t plain = 0;
    for (int i = 0; i < maps_count; ++i) {
        const bool done = fill_plain<kRadius, Format>(maps[i], tile, spreading, padded + i * next);
        plain |= static_cast<std::uint32_t>(done) << i;
    }
    if (plain == 0) {
        return 0;
    }
    float* const behind = padded + (maps_count - 1) * next + used;
    for (std::int64_t i = 0; i < slack; i += kLanes) {
        store(behind + i, f32v{});
    }
    const S stream{plan, kPlainScale, 0.5f / kPlainScale, pitch, memory};
#if TAM_LANES == 16
    if constexpr (S::kPipelined) {
        const auto& gathering = Gathering<kRadius>::of(width, height, maps_count, next);
        Pipeline pipeline;
        pipeline.half_unscale = stream.half_unscale;
        pipeline.run_streams(padded, pitch, gathering, maps_count * gathering.vectors(width, height), memory,
                             GatheredMaps<kRadius>{to, count});
    } else
#endif
    {
        for (int i = 0; i < maps_count; ++i) {
            float* const first = to + i * map_size;
            stream.filter_stream(padded + i * next, height * pitch - 2 * kRadius,
                                 Gathered<kRadius>{first, first + map_size, width, pitch});
        }
    }
    if constexpr (sizeof(typename Format::Storage) != sizeof(float)) {
        store_row(maps[0], tile.row_begin * width, to, count);
    }
    return plain;
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
            const f32v value = Format::widen(load_first<Vector>(from[i] + x, readable - x));
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
std::uint32_t filter_plain(const FilterMap* maps, int count, const FilterPlan& plan, const FilterTile& tile) {
    const std::int64_t width = tile.col_end - tile.col_begin;
    const bool whole = width == maps[0].width && (maps[0].row_stride == width || maps[0].height == 1);
    if (whole) {
        return filter_as_streams<K, Format>(maps, count, plan, tile);
    }
    std::uint32_t plain = 0;
    for (int i = 0; i < count; ++i) {
        plain |= static_cast<std::uint32_t>(filter_as_rows<K, Format>(maps[i], plan, tile)) << i;
    }
    return plain;
}

template <int K>
std::uint32_t filter_plain(const FilterMap* maps, int count, const FilterPlan& plan, const FilterTile& tile) {
    if (maps[0].col_stride != 1 || tile.col_end - tile.col_begin < kLanes) {
        return 0;
    }
    switch (maps[0].dtype) {
        case DType::f32: return filter_plain<K, Float32>(maps, count, plan, tile);
        case DType::f16: return filter_plain<K, Float16>(maps, count, plan, tile);
        case DType::bf16: return filter_plain<K, BFloat16>(maps, count, plan, tile);
        case DType::f64: break;
    }
    return 0;
}

#endif

}  // namespace
}  // namespace tam::cpu::TAM_ISA
