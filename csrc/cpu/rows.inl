// Rows of matrices as contiguous float32 or float64, for one instruction set.

#include "convert.inl"
#include "rows_kernels.h"

namespace tam::cpu::TAM_ISA {
namespace {

void TAM_NAME(load_row_f32)(DType dtype, const void* from, std::int64_t stride, std::int64_t size, float* to) {
    load_row(dtype, from, stride, size, to);
}

void TAM_NAME(load_row_f64)(DType dtype, const void* from, std::int64_t stride, std::int64_t size, double* to) {
    load_row(dtype, from, stride, size, to);
}

bool TAM_NAME(all_finite_f32)(const float* row, std::int64_t size) {
    i32v largest{};
    std::int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) {
        largest = larger(largest, load<i32v>(row + i) & 0x7fffffff);
    }
    if (i < size) {
        float tail[kLanes] = {};
        std::memcpy(tail, row + i, static_cast<std::size_t>(size - i) * sizeof(float));
        largest = larger(largest, load<i32v>(tail) & 0x7fffffff);
    }
    std::int32_t worst = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
        worst = worst < largest[lane] ? largest[lane] : worst;
    }
    return worst < 0x7f800000;
}

}  // namespace
}  // namespace tam::cpu::TAM_ISA
