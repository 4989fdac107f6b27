#pragma once

#include <cstdint>

#include "tam_fast/params.h"

namespace tam::cpu {

struct RowsKernels {
    const char* isa;
    // size elements, `stride` apart, into the contiguous array `to`
    void (*load_f32)(DType dtype, const void* from, std::int64_t stride, std::int64_t size, float* to);
    void (*load_f64)(DType dtype, const void* from, std::int64_t stride, std::int64_t size, double* to);
};

extern const RowsKernels rows_serial;
extern const RowsKernels rows_avx2;
extern const RowsKernels rows_avx512;

const RowsKernels& rows_kernels();

const void* element_of(const MatrixView& matrix, std::int64_t row, std::int64_t col);

inline bool is_plain_f32(const MatrixView& matrix) {
    return matrix.dtype == DType::f32 && (matrix.col_stride == 1 || matrix.cols <= 1);
}

// The wanted row of a matrix as contiguous float32: the matrix itself where it already is, else converted into `buffer`.
const float* row_f32(const RowsKernels& kernels, const MatrixView& matrix, std::int64_t row, float* buffer);

}  // namespace tam::cpu
