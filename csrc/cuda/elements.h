#pragma once

// Elements of tensors of any storage type.

#include <cstdint>

#include "platform.h"
#include "tam_fast/params.h"

namespace tam::cuda {

TAM_DEVICE float as_float(float value) {
    return value;
}

TAM_DEVICE float as_float(__half value) {
    return __half2float(value);
}

TAM_DEVICE float as_float(__nv_bfloat16 value) {
    return __bfloat162float(value);
}

TAM_DEVICE float as_float(double value) {
    return static_cast<float>(value);
}

TAM_DEVICE float element_as_float(const void* data, DType dtype, std::int64_t index) {
    switch (dtype) {
        case DType::f16: return as_float(static_cast<const __half*>(data)[index]);
        case DType::bf16: return as_float(static_cast<const __nv_bfloat16*>(data)[index]);
        case DType::f64: return as_float(static_cast<const double*>(data)[index]);
        default: return static_cast<const float*>(data)[index];
    }
}

TAM_DEVICE double element_as_double(const void* data, DType dtype, std::int64_t index) {
    return dtype == DType::f64 ? static_cast<const double*>(data)[index]
                               : static_cast<double>(element_as_float(data, dtype, index));
}

}  // namespace tam::cuda
