#pragma once

#include <cstdint>

namespace tam {

// Storage types of the tensors that cross the interface. Arithmetic is float32 or better whatever the storage.
enum class DType : std::int32_t { f32 = 0, f16 = 1, bf16 = 2, f64 = 3 };

inline constexpr int kMaxLeadingDims = 8;

// A strided matrix. Sizes and strides count elements; strides may be zero or negative.
struct MatrixView {
    const void* data = nullptr;
    DType dtype = DType::f32;
    std::int64_t rows = 0;
    std::int64_t cols = 0;
    std::int64_t row_stride = 0;
    std::int64_t col_stride = 1;
};

// A strided vector of int64 indices or lengths. A null pointer means "absent"; each use says what that stands for.
struct IndexView {
    const std::int64_t* data = nullptr;
    std::int64_t size = 0;
    std::int64_t stride = 1;
};

}  // namespace tam
