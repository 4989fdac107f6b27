// Scores of one token: a matrix-vector product with a warp for every position. Each lane adds up its channels, in order, and
// the lanes are added in a fixed tree.

#include "tam_fast/cuda/stream_step.h"

#include <type_traits>

#include "elements.h"
#include "platform.h"

namespace tam::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;

// Channels of any kind, one by one.
struct Anything {};

TAM_DEVICE float2 channels_of(std::uint32_t word, __half) {
    __half2 pair;
    __builtin_memcpy(&pair, &word, sizeof pair);
    return __half22float2(pair);
}

TAM_DEVICE float2 channels_of(std::uint32_t word, __nv_bfloat16) {
    return make_float2(bits_as_float(word << 16), bits_as_float(word & 0xffff0000u));
}

// sum += products of the channels in two times 16 bytes
template <class Half>
TAM_DEVICE float add_products(uint4 a, uint4 b, float sum, Half kind) {
    const std::uint32_t left[4] = {a.x, a.y, a.z, a.w};
    const std::uint32_t right[4] = {b.x, b.y, b.z, b.w};
    TAM_UNROLL
    for (int i = 0; i < 4; ++i) {
        const float2 of_left = channels_of(left[i], kind);
        const float2 of_right = channels_of(right[i], kind);
        sum = fmaf(of_left.y, of_right.y, fmaf(of_left.x, of_right.x, sum));
    }
    return sum;
}

TAM_DEVICE float add_products(uint4 a, uint4 b, float sum, float) {
    sum = fmaf(bits_as_float(a.x), bits_as_float(b.x), sum);
    sum = fmaf(bits_as_float(a.y), bits_as_float(b.y), sum);
    sum = fmaf(bits_as_float(a.z), bits_as_float(b.z), sum);
    return fmaf(bits_as_float(a.w), bits_as_float(b.w), sum);
}

// The lane's part of <row of a, row of b>.
template <class Kind>
TAM_DEVICE float products_of_lane(const MatrixView& a, std::int64_t a_row, const MatrixView& b, std::int64_t b_row,
                                  int lane) {
    const std::int64_t channels = a.cols;
    const std::int64_t a_begin = a_row * a.row_stride;
    const std::int64_t b_begin = b_row * b.row_stride;
    if constexpr (!std::is_same_v<Kind, Anything>) {
        constexpr int kChunk = 16 / static_cast<int>(sizeof(Kind));
        constexpr int kStep = kChunk * kWarp;
        constexpr int kAtOnce = 4;  // loads under way
        const Kind* const from_a = static_cast<const Kind*>(a.data) + a_begin + lane * kChunk;
        const Kind* const from_b = static_cast<const Kind*>(b.data) + b_begin + lane * kChunk;
        float sums[kAtOnce] = {};
        std::int64_t channel = 0;
        for (; channel + kAtOnce * kStep <= channels; channel += kAtOnce * kStep) {
            uint4 of_a[kAtOnce];
            uint4 of_b[kAtOnce];
            TAM_UNROLL
            for (int i = 0; i < kAtOnce; ++i) {
                of_a[i] = __ldg(reinterpret_cast<const uint4*>(from_a + channel + i * kStep));
                of_b[i] = __ldg(reinterpret_cast<const uint4*>(from_b + channel + i * kStep));
            }
            TAM_UNROLL
            for (int i = 0; i < kAtOnce; ++i) {
                sums[i] = add_products(of_a[i], of_b[i], sums[i], Kind{});
            }
        }
        for (; channel + kStep <= channels; channel += kStep) {
            sums[0] = add_products(__ldg(reinterpret_cast<const uint4*>(from_a + channel)),
                                   __ldg(reinterpret_cast<const uint4*>(from_b + channel)), sums[0], Kind{});
        }
        float sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        const Kind* const rest_a = static_cast<const Kind*>(a.data) + a_begin;
        const Kind* const rest_b = static_cast<const Kind*>(b.data) + b_begin;
        for (channel += lane; channel < channels; channel += kWarp) {
            sum = fmaf(as_float(rest_a[channel]), as_float(rest_b[channel]), sum);
        }
        return sum;
    } else {
        float sum = 0.0f;
        for (std::int64_t channel = lane; channel < channels; channel += kWarp) {
            sum = fmaf(element_as_float(a.data, a.dtype, a_begin + channel),
                       element_as_float(b.data, b.dtype, b_begin + channel), sum);
        }
        return sum;
    }
}

template <class Kind>
TAM_KERNEL void __launch_bounds__(kThreads) stream_step_kernel(const __grid_constant__ StreamStep step) {
    const std::int64_t position = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const std::int64_t token = step.state[0];
    const std::int64_t score_row = step.state[1];
    const std::int64_t length = step.state[2];
    const bool is_new = step.state[3] != 0;
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        if (length >= 0 && length < step.prompt_text + step.states.rows) {
            step.context_rows[length] = score_row;
            step.context_names[length] = score_row;
        }
        *step.activation_row = score_row;
        if (*step.target_name != -1) {
            *step.target_name = score_row;
        }
        *step.length = length;
    }
    const std::int64_t answered = position - step.position_count;  // the state that is read, if it is the answer's
    if (answered < 0 ? !is_new : answered >= length - step.prompt_text || answered >= step.states.rows) {
        return;
    }
    const MatrixView& matrix = answered < 0 ? step.prompt : step.states;
    const std::int64_t row = answered < 0 ? step.positions[position] : answered;
    float sum = bits_as_float(0x7fc00000u);
    if (token >= 0 && token < step.classifier.rows && row >= 0 && row < matrix.rows) {
        sum = products_of_lane<Kind>(matrix, row, step.classifier, token, lane);
    }
    TAM_UNROLL
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
        sum += __shfl_xor_sync(kWholeWarp, sum, lanes);
    }
    if (lane == 0) {
        step.scores[score_row * step.row_stride + position] = sum <= 0.0f ? 0.0f : sum;
        if (step.flag != nullptr && !(fabsf(sum) < bits_as_float(0x7f800000u))) {
            *step.flag = 1;
        }
    }
}

bool is_aligned(const MatrixView& matrix, std::int64_t bytes) {
    return reinterpret_cast<std::uintptr_t>(matrix.data) % 16 == 0 && matrix.row_stride * bytes % 16 == 0;
}

}  // namespace

cudaError_t launch_stream_step(const StreamStep& step, cudaStream_t stream) {
    const DType dtype = step.classifier.dtype;
    const std::int64_t bytes = dtype == DType::f32 ? 4 : 2;
    const bool aligned = step.prompt.dtype == dtype && step.states.dtype == dtype && is_aligned(step.prompt, bytes) &&
                         is_aligned(step.states, bytes) && is_aligned(step.classifier, bytes);
    const auto kernel = !aligned               ? stream_step_kernel<Anything>
                        : dtype == DType::f16  ? stream_step_kernel<__half>
                        : dtype == DType::bf16 ? stream_step_kernel<__nv_bfloat16>
                        : dtype == DType::f32  ? stream_step_kernel<float>
                                               : stream_step_kernel<Anything>;
    const std::int64_t positions = step.position_count + step.states.rows;
    const std::int64_t blocks = positions == 0 ? 1 : (positions + kWarps - 1) / kWarps;
    return launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream, step);
}

}  // namespace tam::cuda
