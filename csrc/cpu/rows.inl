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

}  // namespace
}  // namespace tam::cpu::TAM_ISA
