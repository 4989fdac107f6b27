#pragma once

// The portable path: four lanes, which every compiler with vector extensions lowers to what its target has.

#define TAM_ISA serial
#define TAM_LANES 4
#include "simd.inl"

namespace tam::cpu::TAM_ISA {

// table[index mod 32]
TAM_INLINE i32v lookup(const std::uint32_t* table, i32v index) {
    i32v values;
    for (int lane = 0; lane < kLanes; ++lane) {
        values[lane] = static_cast<std::int32_t>(table[index[lane] & 31]);
    }
    return values;
}

#ifdef __FP_FAST_FMAF

TAM_INLINE f32v fma(f32v a, f32v b, f32v c) {
    f32v result;
    for (int lane = 0; lane < kLanes; ++lane) {
        result[lane] = __builtin_fmaf(a[lane], b[lane], c[lane]);
    }
    return result;
}

#else

// As many doubles as f32v has floats; compilers split what their target cannot hold.
typedef double f64w __attribute__((vector_size(8 * TAM_LANES)));

// sum rounded to odd, given the error of its rounding: cut off towards zero, and made odd if anything was cut.
TAM_INLINE f64v rounded_to_odd(f64v sum, f64v error) {
    const i64v below = error < 0.0;  // both are false where infinities made the error NaN
    const i64v above = error > 0.0;
    const i64v away_from_zero = (below & (sum > 0.0)) | (above & (sum < 0.0));
    return from_bits((bits(sum) + away_from_zero) | ((below | above) & 1));
}

// Fused multiply-add of floats in doubles. The product is exact, and a sum that was rounded to odd can be rounded once
// more, to float, without rounding twice.
TAM_INLINE f32v fma(f32v a, f32v b, f32v c) {
    const f64w product = __builtin_convertvector(a, f64w) * __builtin_convertvector(b, f64w);
    const f64w addend = __builtin_convertvector(c, f64w);
    const f64w sum = product + addend;
    const f64w part = sum - product;
    const f64w error = (product - (sum - part)) + (addend - part);
    f64v sums[2];
    f64v errors[2];
    std::memcpy(sums, &sum, sizeof sums);
    std::memcpy(errors, &error, sizeof errors);
    const f64v odd[2] = {rounded_to_odd(sums[0], errors[0]), rounded_to_odd(sums[1], errors[1])};
    f64w joined;
    std::memcpy(&joined, odd, sizeof joined);
    return __builtin_convertvector(joined, f32v);
}

#endif

TAM_INLINE f32v f32_from_f16(u16v half) {
    return f32_from_f16_generic(half);
}
TAM_INLINE u16v f16_from_f32(f32v value) {
    return f16_from_f32_generic(value);
}

}  // namespace tam::cpu::TAM_ISA
