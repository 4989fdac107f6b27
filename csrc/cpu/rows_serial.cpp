#include "simd_serial.h"

#include "rows.inl"

namespace tam::cpu {

const RowsKernels rows_serial = {
    "serial",
    serial::load_row_f32_serial,
    serial::load_row_f64_serial,
};

}  // namespace tam::cpu
