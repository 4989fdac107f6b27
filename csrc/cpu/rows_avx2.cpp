#include "simd_avx2.h"

#include "rows.inl"

namespace tam::cpu {

const RowsKernels rows_avx2 = {
    "avx2",
    avx2::load_row_f32_avx2,
    avx2::load_row_f64_avx2,
};

}  // namespace tam::cpu
