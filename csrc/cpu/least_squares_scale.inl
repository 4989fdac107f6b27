// Least-squares scale of one row, for one instruction set.

#include "dot_products.inl"
#include "least_squares_scale_kernels.h"

namespace tam::cpu::TAM_ISA {
namespace {

double TAM_NAME(least_squares_scale_f32)(const float* target, const float* interference, std::int64_t size) {
    return DotProducts::scale(target, interference, size);
}

double TAM_NAME(least_squares_scale_f64)(const double* target, const double* interference, std::int64_t size) {
    return DotProducts::scale(target, interference, size);
}

}  // namespace
}  // namespace tam::cpu::TAM_ISA
