// Vectors of TAM_LANES float32 lanes on the GCC/Clang vector extensions, for one instruction set. Included by
// simd_<isa>.h, which adds what the extensions cannot say.
//
// Everything an ISA's objects run lives in namespace tam::cpu::TAM_ISA and nothing of the standard library is called: an
// inline function shared with other objects could be emitted here with wide instructions and picked by the linker for all.

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "tam_fast/params.h"

#define TAM_ALWAYS_INLINE __attribute__((always_inline))
#define TAM_INLINE static inline TAM_ALWAYS_INLINE

// For loops of constant length whose arrays have to end up in registers.
#ifdef __clang__
#define TAM_UNROLL _Pragma("unroll")
#else
#define TAM_UNROLL _Pragma("GCC unroll 32")
#endif

#define TAM_JOIN_(a, b) a##_##b
#define TAM_JOIN(a, b) TAM_JOIN_(a, b)
#define TAM_NAME(stem) TAM_JOIN(stem, TAM_ISA)

namespace tam::cpu::TAM_ISA {

inline constexpr int kLanes = TAM_LANES;

typedef float f32v __attribute__((vector_size(4 * TAM_LANES)));
typedef std::int32_t i32v __attribute__((vector_size(4 * TAM_LANES)));
typedef std::uint32_t u32v __attribute__((vector_size(4 * TAM_LANES)));
typedef std::uint16_t u16v __attribute__((vector_size(2 * TAM_LANES)));
typedef double f64v __attribute__((vector_size(4 * TAM_LANES)));
typedef std::int64_t i64v __attribute__((vector_size(4 * TAM_LANES)));
typedef std::uint64_t u64v __attribute__((vector_size(4 * TAM_LANES)));
typedef float f32h __attribute__((vector_size(2 * TAM_LANES)));  // as many floats as f64v has doubles

template <class Scalar>
struct Simd;
template <>
struct Simd<float> {
    using Float = f32v;
    using Int = i32v;
    using Unsigned = u32v;
    using IntScalar = std::int32_t;
    static constexpr int lanes = kLanes;
};
template <>
struct Simd<double> {
    using Float = f64v;
    using Int = i64v;
    using Unsigned = u64v;
    using IntScalar = std::int64_t;
    static constexpr int lanes = kLanes / 2;
};

template <class V, class T>
TAM_INLINE V load(const T* from) {
    V value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

template <class V, class T>
TAM_INLINE void store(T* to, V value) {
    std::memcpy(to, &value, sizeof value);
}

template <class V, class T>
TAM_INLINE V broadcast(T value) {
    return value - V{};  // folds into a plain broadcast; value + 0 would turn -0 into 0 and could not
}

// Keeps a value that is used several times in a register: GCC prefers to fold a load into each of its uses, so that loads,
// and above all those that cross a cache line, set the pace.
template <class V>
TAM_INLINE V in_register(V value) {
#ifdef __AVX2__
    asm volatile("" : "+v"(value));
#endif
    return value;
}

template <class V>
TAM_INLINE V smaller(V a, V b) {
    return a < b ? a : b;
}

template <class V>
TAM_INLINE V larger(V a, V b) {
    return a < b ? b : a;
}

TAM_INLINE i32v bits(f32v x) {
    return (i32v)x;
}
TAM_INLINE i64v bits(f64v x) {
    return (i64v)x;
}
TAM_INLINE f32v from_bits(i32v x) {
    return (f32v)x;
}
TAM_INLINE f64v from_bits(i64v x) {
    return (f64v)x;
}

template <class T>
TAM_INLINE std::int64_t round_up(T value, std::int64_t multiple) {
    return (static_cast<std::int64_t>(value) + multiple - 1) / multiple * multiple;
}

TAM_INLINE std::int64_t least(std::int64_t a, std::int64_t b) {
    return a < b ? a : b;
}
TAM_INLINE std::int64_t most(std::int64_t a, std::int64_t b) {
    return a < b ? b : a;
}

// The generic conversions below and the instructions some ISAs use instead give the same bits for all but NaN payloads.
TAM_INLINE f32v f32_from_f16_generic(u16v half) {
    const u32v wide = __builtin_convertvector(half, u32v);
    const u32v magnitude = (wide & 0x7fffu) << 13;
    const f32v scaled = (f32v)magnitude * 0x1p112f;  // exact, subnormal halves included
    const u32v finite = (u32v)scaled;
    const u32v special = magnitude | 0x7f800000u;
    return (f32v)((magnitude >= 0x0f800000u ? special : finite) | ((wide & 0x8000u) << 16));
}

TAM_INLINE u16v f16_from_f32_generic(f32v value) {
    const u32v all = (u32v)value;
    const u32v magnitude = all & 0x7fffffffu;
    const u32v normal = (magnitude + (((magnitude >> 13) & 1u) + (0xfffu - (112u << 23)))) >> 13;
    // Adding 0.5 rounds to multiples of 2^-24, the unit of subnormal halves.
    const u32v subnormal = (u32v)((f32v)magnitude + 0.5f) - 0x3f000000u;
    const u32v infinite = broadcast<u32v>(0x7c00u);
    u32v half = magnitude < 0x38800000u ? subnormal : normal;
    half = magnitude >= 0x47800000u ? infinite : half;
    half = magnitude > 0x7f800000u ? infinite | 0x200u : half;
    return __builtin_convertvector(half | ((all >> 16) & 0x8000u), u16v);
}

TAM_INLINE f32v f32_from_bf16(u16v half) {
    return (f32v)(__builtin_convertvector(half, u32v) << 16);
}

TAM_INLINE u16v bf16_from_f32(f32v value) {
    const u32v all = (u32v)value;
    const u32v rounded = (all + (((all >> 16) & 1u) + 0x7fffu)) >> 16;
    const u32v nan = (all >> 16) | 0x40u;
    return __builtin_convertvector((all & 0x7fffffffu) > 0x7f800000u ? nan : rounded, u16v);
}

}  // namespace tam::cpu::TAM_ISA
