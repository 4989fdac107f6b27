#include "simd_avx512.h"

#include "rows.inl"

namespace tam::cpu {

const RowsKernels rows_avx512 = {
    "avx512",
    avx512::load_row_f32_avx512,
    avx512::load_row_f64_avx512,
};

}  // namespace tam::cpu
