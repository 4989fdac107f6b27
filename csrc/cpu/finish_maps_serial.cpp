#include "simd_serial.h"

#include "finish_maps.inl"

namespace tam::cpu {

const FinishMapsKernels finish_maps_serial = {
    "serial",
    serial::normalise_f32_serial,
};

}  // namespace tam::cpu
