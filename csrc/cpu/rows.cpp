#include "dispatch.h"
#include "rows_kernels.h"

namespace tam::cpu {
namespace {

constexpr const RowsKernels* kKernels[kIsaCount] = TAM_KERNEL_TABLES(rows);

}  // namespace

const RowsKernels& rows_kernels() {
    return select_kernels(kKernels);
}

const void* element_of(const MatrixView& matrix, std::int64_t row, std::int64_t col) {
    const std::int64_t bytes = matrix.dtype == DType::f64 ? 8 : matrix.dtype == DType::f32 ? 4 : 2;
    return static_cast<const char*>(matrix.data) + (row * matrix.row_stride + col * matrix.col_stride) * bytes;
}

const float* row_f32(const RowsKernels& kernels, const MatrixView& matrix, std::int64_t row, float* buffer) {
    const void* const start = element_of(matrix, row, 0);
    if (is_plain_f32(matrix)) {
        return static_cast<const float*>(start);
    }
    kernels.load_f32(matrix.dtype, start, matrix.col_stride, matrix.cols, buffer);
    return buffer;
}

}  // namespace tam::cpu
