// Joint min-max normalisation of a map and its text relevances, for one instruction set.

#include "finish_maps_kernels.h"

namespace tam::cpu::TAM_ISA {
namespace {

struct Range {
    float low = __builtin_inff();
    float high = -__builtin_inff();
    bool nan = false;

    void add(const float* values, std::int64_t size) {
        f32v low_lanes = broadcast<f32v>(low);
        f32v high_lanes = broadcast<f32v>(high);
        i32v nan_lanes{};
        std::int64_t i = 0;
        for (; i + kLanes <= size; i += kLanes) {
            const f32v value = load<f32v>(values + i);
            low_lanes = smaller(low_lanes, value);
            high_lanes = larger(high_lanes, value);
            nan_lanes |= value != value;
        }
        for (int lane = 0; lane < kLanes; ++lane) {
            include(low_lanes[lane], high_lanes[lane], nan_lanes[lane] != 0);
        }
        for (; i < size; ++i) {
            include(values[i], values[i], values[i] != values[i]);
        }
    }

  private:
    void include(float smallest, float largest, bool any_nan) {
        low = smallest < low ? smallest : low;
        high = largest > high ? largest : high;
        nan = nan || any_nan;
    }
};

// NaN anywhere makes all of the row NaN, as the minimum of it is. The + 0 makes one zero of both.
void rescale(const float* from, std::int64_t size, const Range& range, float* to) {
    const f32v nan = broadcast<f32v>(__builtin_nanf(""));
    const f32v low = range.nan ? nan : broadcast<f32v>(range.low);
    const float unit = range.high - range.low;
    const auto rescaled = [&](f32v value) {
        const f32v result = (value - low) / unit + 0.0f;
        return result == result ? result : nan;
    };
    std::int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) {
        store(to + i, rescaled(load<f32v>(from + i)));
    }
    if (i < size) {
        const std::size_t bytes = static_cast<std::size_t>(size - i) * sizeof(float);
        float tail[kLanes] = {};
        std::memcpy(tail, from + i, bytes);
        store(tail, rescaled(load<f32v>(tail)));
        std::memcpy(to + i, tail, bytes);
    }
}

bool TAM_NAME(normalise_f32)(float* map, std::int64_t size, const float* relevance, std::int64_t text_length,
                             std::int64_t text_size, float* text) {
    Range range;
    range.add(map, size);
    range.add(relevance, text_length);
    const bool flat = !range.nan && !(range.low < range.high);
    if (flat) {
        std::memset(map, 0, static_cast<std::size_t>(size) * sizeof(float));
        text_length = 0;
    } else {
        rescale(map, size, range, map);
        rescale(relevance, text_length, range, text);
    }
    if (text_size > text_length) {
        std::memset(text + text_length, 0, static_cast<std::size_t>(text_size - text_length) * sizeof(float));
    }
    return flat;
}

}  // namespace
}  // namespace tam::cpu::TAM_ISA
