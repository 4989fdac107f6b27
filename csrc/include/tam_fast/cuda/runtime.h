#pragma once

// The types of the CUDA runtime that the launchers' signatures name.

#ifdef TAM_FAST_EMULATION

using cudaStream_t = void*;

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorLaunchFailure = 719,
};

// Of the calling thread's latest launch, in detail.
const char* cudaGetErrorString(cudaError_t error);

#else

#include <cuda_runtime_api.h>

#endif
