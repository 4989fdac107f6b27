// Rows of any storage type and stride to and from contiguous float32 or float64.

namespace tam::cpu::TAM_ISA {
namespace {

struct Half {
    std::uint16_t pattern;
};
struct BFloat {
    std::uint16_t pattern;
};

TAM_INLINE f32v widen(u16v patterns, Half) {
    return f32_from_f16(patterns);
}
TAM_INLINE f32v widen(u16v patterns, BFloat) {
    return f32_from_bf16(patterns);
}
TAM_INLINE u16v narrow(f32v values, Half) {
    return f16_from_f32(values);
}
TAM_INLINE u16v narrow(f32v values, BFloat) {
    return bf16_from_f32(values);
}

template <class Storage, class To>
void unpack_16bit(const std::uint16_t* from, std::int64_t stride, std::int64_t size, To* to) {
    std::int64_t i = 0;
    if constexpr (sizeof(To) == sizeof(float)) {
        for (; stride == 1 && i + kLanes <= size; i += kLanes) {
            store(to + i, widen(load<u16v>(from + i), Storage{}));
        }
    }
    for (; i < size; i += kLanes) {
        const std::int64_t count = least(kLanes, size - i);
        std::uint16_t patterns[kLanes] = {};
        for (std::int64_t lane = 0; lane < count; ++lane) {
            patterns[lane] = from[(i + lane) * stride];
        }
        float values[kLanes];
        store(values, widen(load<u16v>(patterns), Storage{}));
        for (std::int64_t lane = 0; lane < count; ++lane) {
            to[i + lane] = static_cast<To>(values[lane]);
        }
    }
}

template <class Storage>
void pack_16bit(const float* from, std::int64_t size, std::uint16_t* to) {
    std::int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) {
        store(to + i, narrow(load<f32v>(from + i), Storage{}));
    }
    if (i < size) {
        float values[kLanes] = {};
        std::memcpy(values, from + i, static_cast<std::size_t>(size - i) * sizeof(float));
        std::uint16_t patterns[kLanes];
        store(patterns, narrow(load<f32v>(values), Storage{}));
        std::memcpy(to + i, patterns, static_cast<std::size_t>(size - i) * sizeof(std::uint16_t));
    }
}

template <class Storage, class To>
void unpack_plain(const Storage* from, std::int64_t stride, std::int64_t size, To* to) {
    if (stride == 1) {
        for (std::int64_t i = 0; i < size; ++i) {
            to[i] = static_cast<To>(from[i]);
        }
    } else {
        for (std::int64_t i = 0; i < size; ++i) {
            to[i] = static_cast<To>(from[i * stride]);
        }
    }
}

TAM_INLINE const void* element(const void* data, DType dtype, std::int64_t offset) {
    const std::int64_t bytes = dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2;
    return static_cast<const char*>(data) + offset * bytes;
}

// size elements, `stride` apart, into the contiguous array `to`.
template <class To>
void load_row(DType dtype, const void* from, std::int64_t stride, std::int64_t size, To* to) {
    switch (dtype) {
        case DType::f32: unpack_plain(static_cast<const float*>(from), stride, size, to); break;
        case DType::f64: unpack_plain(static_cast<const double*>(from), stride, size, to); break;
        case DType::f16: unpack_16bit<Half>(static_cast<const std::uint16_t*>(from), stride, size, to); break;
        case DType::bf16: unpack_16bit<BFloat>(static_cast<const std::uint16_t*>(from), stride, size, to); break;
    }
}

}  // namespace
}  // namespace tam::cpu::TAM_ISA
