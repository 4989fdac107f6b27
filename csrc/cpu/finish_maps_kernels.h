#pragma once

#include <cstdint>

namespace tam::cpu {

struct FinishMapsKernels {
    const char* isa;
    // Joint normalisation of a map (in place) and the first `text_length` of `text_size` relevances; the rest become 0.
    // True where everything was one value.
    bool (*normalise_f32)(float* map, std::int64_t size, const float* relevance, std::int64_t text_length,
                          std::int64_t text_size, float* text);
};

extern const FinishMapsKernels finish_maps_serial;
extern const FinishMapsKernels finish_maps_avx2;
extern const FinishMapsKernels finish_maps_avx512;

}  // namespace tam::cpu
