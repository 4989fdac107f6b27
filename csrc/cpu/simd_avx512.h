#pragma once

#include <immintrin.h>

#define TAM_ISA avx512
#define TAM_LANES 16
#include "simd.inl"

namespace tam::cpu::TAM_ISA {

TAM_INLINE f32v fma(f32v a, f32v b, f32v c) {
    return (f32v)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
// Stores the first `count` lanes, 0 to 16.
TAM_INLINE void store_some(float* to, f32v value, std::int64_t count) {
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), (__m512)value);
}
TAM_INLINE void store_some(std::uint16_t* to, u16v value, std::int64_t count) {
    _mm256_mask_storeu_epi16(to, static_cast<__mmask16>((1u << count) - 1), (__m256i)value);
}
// Loads the first `count` lanes, 16 or more for all, and zeros.
TAM_INLINE f32v load_some(const float* from, std::int64_t count) {
    const __mmask16 mask = static_cast<__mmask16>((1u << least(count, TAM_LANES)) - 1);
    return (f32v)_mm512_maskz_loadu_ps(mask, from);
}
TAM_INLINE u16v load_some(const std::uint16_t* from, std::int64_t count) {
    const __mmask16 mask = static_cast<__mmask16>((1u << least(count, TAM_LANES)) - 1);
    return (u16v)_mm256_maskz_loadu_epi16(mask, from);
}
TAM_INLINE bool any_lane(i32v mask) {
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
}
// table[index mod 32]
TAM_INLINE i32v lookup(const std::uint32_t* table, i32v index) {
    return (i32v)_mm512_permutex2var_epi32(_mm512_load_si512(table), (__m512i)index, _mm512_load_si512(table + 16));
}
TAM_INLINE f32v permuted(f32v value, i32v lane_from) {
    // Masked by all ones, which costs nothing: GCC warns about its own unmasked intrinsic (GCC bug 105593).
    return (f32v)_mm512_maskz_permutexvar_ps(0xffff, (__m512i)lane_from, (__m512)value);
}
TAM_INLINE f32v f32_from_f16(u16v half) {
    return (f32v)_mm512_maskz_cvtph_ps(0xffff, (__m256i)half);  // as above
}
TAM_INLINE u16v f16_from_f32(f32v value) {
    return (u16v)_mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

}  // namespace tam::cpu::TAM_ISA
