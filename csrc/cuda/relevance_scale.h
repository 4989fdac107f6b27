#pragma once

// What a context token's relevance to a target token is, and the power of two that keeps sums over it in range: one
// definition for the kernels that make the interference and those that divide by it.

#include <cstdint>

#include "platform.h"

namespace tam::cuda {

// The relevances of one target token to the context. Those that do not count are 0.
struct RelevanceRow {
    const float* values = nullptr;
    const std::int64_t* context_names = nullptr;  // null: tokens are not compared
    std::int64_t target_name = 0;
    std::int64_t length = 0;  // context tokens that count, at most; none where the target's name is -1

    TAM_DEVICE float operator[](std::int64_t k) const {
        return k < length && (context_names == nullptr || context_names[k] != target_name) ? values[k] : 0.0f;
    }
};

// Row `target` of a relevance matrix of `contexts` columns. Null pointers: row `target` itself, no names, all columns.
TAM_DEVICE RelevanceRow relevance_row(const float* relevance, std::int64_t row_stride, const std::int64_t* rows,
                                      const std::int64_t* context_names, const std::int64_t* target_names,
                                      const std::int64_t* lengths, std::int64_t target, std::int64_t contexts) {
    RelevanceRow row;
    row.length = contexts;
    if (lengths != nullptr) {
        const std::int64_t length = lengths[target];
        row.length = length < 0 ? 0 : length < contexts ? length : contexts;
    }
    if (target_names != nullptr) {
        row.target_name = target_names[target];
        row.context_names = context_names;
        row.length = row.target_name == -1 ? 0 : row.length;
    }
    row.values = relevance + (rows == nullptr ? target : rows[target]) * row_stride;
    return row;
}

// The magnitude of a finite value as an integer that orders like it; 0 for NaN and Inf.
TAM_DEVICE std::uint32_t finite_magnitude(float value) {
    const std::uint32_t pattern = float_as_bits(value) & 0x7fffffffu;
    return pattern < 0x7f800000u ? pattern : 0u;
}

// The power of two that brings the largest of the row's finite magnitudes to [1, 2), as far as there is one.
TAM_DEVICE float relevance_factor(std::uint32_t largest_magnitude) {
    const std::uint32_t exponent = largest_magnitude >> 23;
    return bits_as_float((exponent < 253u ? 254u - exponent : 1u) << 23);
}

}  // namespace tam::cuda
