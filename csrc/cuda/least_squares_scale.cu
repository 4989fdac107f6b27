// Closed form of Eq. 5 of the TAM paper: a block sums a row in float64, in a fixed order.

#include "tam_fast/cuda/least_squares_scale.h"

#include "elements.h"
#include "items.h"
#include "platform.h"

namespace tam::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;

struct Memory {
    double sums[2][kWarps];
    int exponents[2][kWarps];
};

// The biased exponent of a finite value; 0 for NaN and Inf.
TAM_DEVICE int exponent_of(double value) {
    const int exponent = static_cast<int>(__double_as_longlong(value) >> 52) & 0x7ff;
    return exponent == 0x7ff ? 0 : exponent;
}

// 2^exponent, a normal number.
TAM_DEVICE double power_of_two(int exponent) {
    return __longlong_as_double(static_cast<long long>(exponent + 1023) << 52);
}

TAM_DEVICE double sum_of_warp(double value) {
    TAM_UNROLL
    for (int step = kWarp / 2; step > 0; step /= 2) {
        value += __shfl_xor_sync(kWholeWarp, value, step);
    }
    return value;
}

template <int Capacity>
TAM_KERNEL void __launch_bounds__(kThreads)
    least_squares_scale_kernel(const __grid_constant__ Items<LeastSquaresScaleItem, Capacity> items) {
    Memory& memory = *reinterpret_cast<Memory*>(shared_memory());
    const int thread = static_cast<int>(threadIdx.x);
    const int warp = thread / kWarp;
    std::int64_t row;
    const LeastSquaresScaleItem& item = items.of_block(blockIdx.x, row);
    const std::int64_t size = item.target.cols;
    const std::int64_t target_begin = row * item.target.row_stride;
    const std::int64_t interference_begin = row * item.interference.row_stride;

    double target_interference = 0.0;
    double interference_interference = 0.0;
    const auto add = [&](double a, double e) {
        target_interference = fma(a, e, target_interference);
        interference_interference = fma(e, e, interference_interference);
    };
    int steps[2] = {0, 0};  // by which powers of two the sides are multiplied
    if (item.target.dtype == DType::f32 && item.interference.dtype == DType::f32) {
        const float* const target = static_cast<const float*>(item.target.data) + target_begin;
        const float* const interference = static_cast<const float*>(item.interference.data) + interference_begin;
        for (std::int64_t i = thread; i < size; i += kThreads) {
            add(static_cast<double>(target[i]), static_cast<double>(interference[i]));
        }
    } else {
        const auto target = [&](std::int64_t i) {
            return element_as_double(item.target.data, item.target.dtype, target_begin + i);
        };
        const auto interference = [&](std::int64_t i) {
            return element_as_double(item.interference.data, item.interference.dtype, interference_begin + i);
        };
        if (item.target.dtype == DType::f64 || item.interference.dtype == DType::f64) {
            // Squares of float64 can leave its range: both sides are brought near 1.
            int largest[2] = {0, 0};
            for (std::int64_t i = thread; i < size; i += kThreads) {
                const int of_target = exponent_of(target(i));
                const int of_interference = exponent_of(interference(i));
                largest[0] = of_target > largest[0] ? of_target : largest[0];
                largest[1] = of_interference > largest[1] ? of_interference : largest[1];
            }
            TAM_UNROLL
            for (int side = 0; side < 2; ++side) {
                largest[side] = __reduce_max_sync(kWholeWarp, largest[side]);
                memory.exponents[side][warp] = largest[side];
            }
            __syncthreads();
            TAM_UNROLL
            for (int side = 0; side < 2; ++side) {
                for (int i = 0; i < kWarps; ++i) {
                    largest[side] = memory.exponents[side][i] > largest[side] ? memory.exponents[side][i] : largest[side];
                }
                steps[side] = 1023 - largest[side];
            }
        }
        double factors[2][2];  // the power of two itself may be out of range
        TAM_UNROLL
        for (int side = 0; side < 2; ++side) {
            factors[side][0] = power_of_two(steps[side] / 2);
            factors[side][1] = power_of_two(steps[side] - steps[side] / 2);
        }
        for (std::int64_t i = thread; i < size; i += kThreads) {
            add(target(i) * factors[0][0] * factors[0][1], interference(i) * factors[1][0] * factors[1][1]);
        }
    }
    target_interference = sum_of_warp(target_interference);
    interference_interference = sum_of_warp(interference_interference);
    if (thread % kWarp == 0) {
        memory.sums[0][warp] = target_interference;
        memory.sums[1][warp] = interference_interference;
    }
    __syncthreads();
    if (thread == 0) {
        double sums[2] = {0.0, 0.0};
        for (int i = 0; i < kWarps; ++i) {
            sums[0] += memory.sums[0][i];
            sums[1] += memory.sums[1][i];
        }
        const double scale = sums[1] == 0.0 ? 0.0 : sums[0] / sums[1];
        const int left = steps[1] - steps[0];
        item.scale[row] =
            static_cast<float>(scale * power_of_two(left / 3) * power_of_two(left / 3) * power_of_two(left - left / 3 * 2));
    }
}

}  // namespace

cudaError_t launch_least_squares_scale(const LeastSquaresScaleItem* items, std::int64_t count, cudaStream_t stream) {
    const auto send = [&](const auto& batch, std::int64_t rows) {
        constexpr int kCapacity = sizeof batch.item / sizeof batch.item[0];
        return launch(least_squares_scale_kernel<kCapacity>, dim3(static_cast<unsigned>(rows)), dim3(kThreads),
                      sizeof(Memory), stream, batch);
    };
    return launch_items(items, count, [](const LeastSquaresScaleItem& item) { return item.target.rows; }, send);
}

}  // namespace tam::cuda
