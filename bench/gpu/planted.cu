// One planted fault a tool of compute-sanitizer, and a run without one: a tool that does not report its own fault, or
// reports one where there is none, has not looked at anything else either.
//
//     planted none | memcheck | racecheck | initcheck | synccheck

#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>

namespace {

constexpr int kThreads = 64;

// racecheck: without the barrier, a thread reads what one of another warp may not have written yet.
template <bool Barrier>
__global__ void reverse(const int* input, int* output) {
    __shared__ int values[kThreads];
    const int thread = static_cast<int>(threadIdx.x);
    values[thread] = input[thread];
    if constexpr (Barrier) {
        __syncthreads();
    }
    output[thread] = values[kThreads - 1 - thread];
}

// memcheck: the last thread writes behind the end.
__global__ void write_behind_the_end(int* output, int size) {
    const int thread = static_cast<int>(threadIdx.x);
    if (thread <= size) {
        output[thread] = thread;
    }
}

// initcheck: reads what nobody wrote.
__global__ void copy(const int* input, int* output) {
    output[threadIdx.x] = input[threadIdx.x] + 1;
}

// synccheck: half of each warp waits at a barrier that the other half never comes to, and threads name a mask of lanes that
// they are not in.
__global__ void wait_apart(int* output) {
    const int thread = static_cast<int>(threadIdx.x);
    if (thread % 2 == 0) {
        __syncthreads();
    }
    output[thread] = thread;
}

__global__ void wait_for_others(int* output) {
    const int thread = static_cast<int>(threadIdx.x);
    if (thread % 32 >= 16) {
        __syncwarp(0x0000ffffu);
    }
    output[thread] = thread;
}

int failed(const char* what, cudaError_t error) {
    std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
    return 1;
}

}  // namespace

int main(int count, char** arguments) {
    const char* const mode = count == 2 ? arguments[1] : "";
    const auto is = [&](const char* name) { return std::strcmp(mode, name) == 0; };
    if (!is("none") && !is("memcheck") && !is("racecheck") && !is("initcheck") && !is("synccheck")) {
        std::fprintf(stderr, "mode: expected none, memcheck, racecheck, initcheck or synccheck, got '%s'\n", mode);
        return 2;
    }
    constexpr std::size_t kBytes = kThreads * sizeof(int);
    int* input = nullptr;
    int* output = nullptr;
    for (int** place : {&input, &output}) {
        if (const cudaError_t error = cudaMalloc(reinterpret_cast<void**>(place), kBytes); error != cudaSuccess) {
            return failed("cudaMalloc", error);
        }
    }
    if (!is("initcheck")) {
        if (const cudaError_t error = cudaMemset(input, 0, kBytes); error != cudaSuccess) {
            return failed("cudaMemset", error);
        }
    }
    if (is("none")) {
        reverse<true><<<1, kThreads>>>(input, output);
    } else if (is("memcheck")) {
        write_behind_the_end<<<1, 2 * kThreads>>>(output, kThreads);
    } else if (is("racecheck")) {
        reverse<false><<<1, kThreads>>>(input, output);
    } else if (is("initcheck")) {
        copy<<<1, kThreads>>>(input, output);
    } else {
        wait_apart<<<1, kThreads>>>(output);
        wait_for_others<<<1, kThreads>>>(output);
    }
    if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) {
        return failed("launch", error);
    }
    if (const cudaError_t error = cudaDeviceSynchronize(); error != cudaSuccess) {
        return failed("cudaDeviceSynchronize", error);
    }
    int result[kThreads];
    if (const cudaError_t error = cudaMemcpy(result, output, kBytes, cudaMemcpyDeviceToHost); error != cudaSuccess) {
        return failed("cudaMemcpy", error);
    }
    std::printf("%s: done, last value %d\n", mode, result[kThreads - 1]);
    return 0;
}
