// The emulation of CUDA must report what would be undefined on a device: every fault here is planted.

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "items.h"
#include "platform.h"

namespace tam::cuda {
namespace {

int g_failures = 0;

void expect(bool holds, const std::string& what) {
    if (!holds) {
        ++g_failures;
        std::fprintf(stderr, "FAILED: %s\n", what.c_str());
    }
}

void expect_error(cudaError_t error, const char* words) {
    const std::string text = cudaGetErrorString(error);
    expect(error != cudaSuccess && text.find(words) != std::string::npos, std::string(words) + ": got " + text);
}

constexpr int kThreads = 96;

// Turns the values of a block round, with or without the barrier that this needs.
TAM_KERNEL void reverse_kernel(const int* from, int* to, bool barrier) {
    int* const shared = reinterpret_cast<int*>(shared_memory());
    shared[threadIdx.x] = from[threadIdx.x];
    if (barrier) {
        __syncthreads();
    }
    to[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

bool reverses(bool barrier, std::uint64_t seed) {
    std::vector<int> from(kThreads);
    std::vector<int> to(kThreads);
    for (int i = 0; i < kThreads; ++i) {
        from[static_cast<std::size_t>(i)] = i;
    }
    emulation::set_seed(seed);
    const cudaError_t error =
        launch(&reverse_kernel, dim3(1), dim3(kThreads), kThreads * sizeof(int), nullptr, from.data(), to.data(), barrier);
    bool right = error == cudaSuccess;
    for (int i = 0; i < kThreads; ++i) {
        right = right && to[static_cast<std::size_t>(i)] == kThreads - 1 - i;
    }
    return right;
}

void test_missing_barrier() {
    for (std::uint64_t seed = 0; seed < 20; ++seed) {
        expect(reverses(true, seed), "a barrier orders writes before reads");
        expect(!reverses(false, seed), "a missing barrier shows");
    }
    emulation::set_seed(0);
}

TAM_KERNEL void divergent_barrier_kernel(int* result, int kind) {
    if (kind == 0 && threadIdx.x == 5) {
        return;
    }
    if (kind == 1 && threadIdx.x == 5) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    result[threadIdx.x] = 1;
}

TAM_KERNEL void divergent_shuffle_kernel(int* result, int kind) {
    const int lane = static_cast<int>(threadIdx.x % kWarp);
    int value = lane;
    switch (kind) {
        case 0:  // one lane does not come
            if (lane != 3) {
                value = __shfl_xor_sync(kWholeWarp, value, 1);
            }
            break;
        case 1:  // lanes come to different shuffles
            if (lane < 16) {
                value = __shfl_xor_sync(kWholeWarp, value, 1);
            } else {
                value = __shfl_xor_sync(kWholeWarp, value, 2);
            }
            break;
        case 2:  // lanes name different masks
            value = __shfl_xor_sync(lane == 0 ? kWholeWarp : 0xfffffffeu, value, 1);
            break;
        case 3:  // a lane that is not in its own mask
            value = __shfl_xor_sync(0xffffu, value, 1);
            break;
        case 4:  // a barrier for some, a shuffle for others
            if (lane < 16) {
                __syncthreads();
            } else {
                value = __shfl_xor_sync(kWholeWarp, value, 1);
            }
            break;
        default:  // nothing is wrong: two halves on their own
            if (lane < 16) {
                value = __shfl_xor_sync(0x0000ffffu, value, 1);
            } else {
                value = __shfl_xor_sync(0xffff0000u, value, 1);
            }
    }
    result[threadIdx.x] = value;
}

TAM_KERNEL void copy_kernel(const float* from, float* to, bool wait) {
    float* const shared = reinterpret_cast<float*>(shared_memory());
    copy_async<16>(shared + 4 * threadIdx.x, from + 4 * threadIdx.x, threadIdx.x == 1 ? 8 : 16);
    copy_async_commit();
    if (wait) {
        copy_async_wait<0>();
    }
    __syncthreads();
    to[threadIdx.x] = shared[threadIdx.x];
}

void test_divergence() {
    std::vector<int> result(kThreads);
    const auto barrier = [&](int kind) {
        return launch(&divergent_barrier_kernel, dim3(2), dim3(kThreads), 0, nullptr, result.data(), kind);
    };
    expect_error(barrier(0), "thread 5 has ended");
    expect_error(barrier(1), "different barriers");
    expect(barrier(2) == cudaSuccess, "all threads meet at one barrier");

    const auto shuffle = [&](int kind, unsigned threads) {
        return launch(&divergent_shuffle_kernel, dim3(1), dim3(threads), 0, nullptr, result.data(), kind);
    };
    expect_error(shuffle(0, 32), "has ended");
    expect_error(shuffle(1, 32), "lanes of a warp diverge");
    expect_error(shuffle(2, 32), "lanes of a warp diverge");
    expect_error(shuffle(3, 32), "is not in its mask");
    expect_error(shuffle(4, 32), "waits in vain");
    expect_error(shuffle(5, 40), "does not exist");
    expect(shuffle(5, 64) == cudaSuccess, "half warps shuffle on their own");
    for (int i = 0; i < 64; ++i) {
        expect(result[static_cast<std::size_t>(i)] == (i % kWarp ^ 1), "shuffled lanes");
    }
}

void test_configuration() {
    std::vector<int> result(2048);
    const auto run = [&](unsigned threads, std::size_t bytes) {
        return launch(&divergent_barrier_kernel, dim3(1), dim3(threads), bytes, nullptr, result.data(), 2);
    };
    expect_error(run(1025, 0), "invalid configuration");
    expect_error(run(0, 0), "invalid configuration");
    expect_error(run(32, kLargestSharedBytes + 1), "invalid configuration");
    expect(run(1024, kLargestSharedBytes) == cudaSuccess, "the largest block");
}

void test_asynchronous_copies() {
    alignas(16) float from[16];
    float to[16];
    for (int i = 0; i < 16; ++i) {
        from[i] = static_cast<float>(i);
    }
    const auto run = [&](bool wait) { return launch(&copy_kernel, dim3(1), dim3(4), 64, nullptr, from, to, wait); };
    expect(run(true) == cudaSuccess && to[3] == 3.0f, "a copy that is waited for has come");
    expect(run(false) == cudaSuccess && !(to[3] == 3.0f), "a copy that is not waited for shows");
}

TAM_KERNEL void matrix_kernel(const std::uint16_t* a, const std::uint16_t* b, float* d) {
    // a (16 x 16) and the transpose of b (8 x 16), row-major.
    unsigned char* const shared = shared_memory();
    std::uint16_t* const tile = reinterpret_cast<std::uint16_t*>(shared);
    const int lane = static_cast<int>(threadIdx.x);
    for (int i = lane; i < 256; i += kWarp) {
        tile[i] = a[i];
    }
    __syncwarp();
    std::uint32_t left[4];
    load_matrix_x4(left, tile + (lane % 16) * 16 + lane / 16 * 8);
    std::uint32_t right[2];
    for (int i = 0; i < 2; ++i) {
        std::memcpy(&right[i], b + lane / 4 * 16 + lane % 4 * 2 + i * 8, sizeof right[i]);
    }
    float sums[4] = {1.0f, 1.0f, 1.0f, 1.0f};
    mma_m16n8k16<__half>(sums, left, right);
    for (int i = 0; i < 4; ++i) {
        d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sums[i];
    }
}

void test_matrices() {
    std::vector<std::uint16_t> a(256);
    std::vector<std::uint16_t> b(128);
    std::vector<float> d(128);
    const auto a_at = [](int row, int k) { return static_cast<float>((row * 7 + k * 3) % 11) - 5.0f; };
    const auto b_at = [](int k, int column) { return static_cast<float>((k * 5 + column) % 7) - 3.0f; };
    for (int i = 0; i < 256; ++i) {
        a[static_cast<std::size_t>(i)] = __float2half_rn(a_at(i / 16, i % 16)).bits;
    }
    for (int i = 0; i < 128; ++i) {
        b[static_cast<std::size_t>(i)] = __float2half_rn(b_at(i % 16, i / 16)).bits;
    }
    expect(launch(&matrix_kernel, dim3(1), dim3(32), 512, nullptr, a.data(), b.data(), d.data()) == cudaSuccess, "product");
    for (int row = 0; row < 16; ++row) {
        for (int column = 0; column < 8; ++column) {
            float sum = 1.0f;
            for (int k = 0; k < 16; ++k) {
                sum += a_at(row, k) * b_at(k, column);
            }
            expect(d[static_cast<std::size_t>(row * 8 + column)] == sum, "an element of the product");
        }
    }
}

void test_half_values() {
    for (unsigned bits = 0; bits < 0x10000; ++bits) {
        const float value = emulation::float_from_half(static_cast<std::uint16_t>(bits));
        const bool same = emulation::half_from_float(value) == bits;
        expect(same || value != value, "half values survive a visit to float32");
    }
    expect(emulation::half_from_float(1.0f + 0x1p-11f) == 0x3c00, "ties go to even");
    expect(emulation::half_from_float(1.0f + 0x1.8p-10f) == 0x3c02, "ties go to even, upwards");
    expect(emulation::half_from_float(65520.0f) == 0x7c00, "beyond the largest half is infinity");
    expect(__float2bfloat16_rn(1.0f + 0x1p-8f).bits == 0x3f80, "ties of bfloat16 go to even");
    expect(__float2bfloat16_rn(1.0f + 0x1.8p-7f).bits == 0x3f82, "ties of bfloat16 go to even, upwards");
}

void test_dividers() {
    for (std::uint32_t divisor = 1; divisor < 70000; divisor += divisor < 300 ? 1 : 977) {
        const Divider divider(divisor);
        for (const std::uint32_t base : {0u, divisor, 2 * divisor, 1u << 20, 0x3fffffffu, 0x7fffffffu / divisor * divisor}) {
            for (std::uint32_t value = base < 2 ? 0 : base - 2; value <= base + 2 && value < 0x80000000u; ++value) {
                expect(divider.quotient(value) == value / divisor, std::to_string(value) + " / " + std::to_string(divisor));
            }
        }
    }
}

}  // namespace
}  // namespace tam::cuda

int main() {
    using namespace tam::cuda;
    test_missing_barrier();
    test_divergence();
    test_configuration();
    test_asynchronous_copies();
    test_matrices();
    test_half_values();
    test_dividers();
    std::printf("%d failures\n", g_failures);
    return g_failures == 0 ? 0 : 1;
}
