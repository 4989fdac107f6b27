#pragma once

#include <immintrin.h>

#define TAM_ISA avx2
#define TAM_LANES 8
#include "simd.inl"

namespace tam::cpu::TAM_ISA {

TAM_INLINE f32v fma(f32v a, f32v b, f32v c) {
    return (f32v)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
// Stores the first `count` lanes, 0 to 8.
template <class T, class V>
TAM_INLINE void store_some(T* to, V value, std::int64_t count) {
    std::memcpy(to, &value, static_cast<std::size_t>(count) * sizeof(T));
}
TAM_INLINE bool any_lane(i32v mask) {
    return _mm256_testz_si256((__m256i)mask, (__m256i)mask) == 0;
}
// table[index mod 32]: by the lowest three bits in every quarter of the table, then by the other two.
TAM_INLINE i32v lookup(const std::uint32_t* table, i32v index) {
    const auto quarter = [&](int which) {
        return (__m256)_mm256_permutevar8x32_epi32(load<__m256i>(table + 8 * which), (__m256i)index);
    };
    const __m256 by_bit3 = (__m256)(index << 28);
    const __m256 low = _mm256_blendv_ps(quarter(0), quarter(1), by_bit3);
    const __m256 high = _mm256_blendv_ps(quarter(2), quarter(3), by_bit3);
    return (i32v)_mm256_blendv_ps(low, high, (__m256)(index << 27));
}
TAM_INLINE f32v permuted(f32v value, i32v lane_from) {
    return (f32v)_mm256_permutevar8x32_ps((__m256)value, (__m256i)lane_from);
}
TAM_INLINE f32v f32_from_f16(u16v half) {
    return (f32v)_mm256_cvtph_ps((__m128i)half);
}
TAM_INLINE u16v f16_from_f32(f32v value) {
    return (u16v)_mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

}  // namespace tam::cpu::TAM_ISA
