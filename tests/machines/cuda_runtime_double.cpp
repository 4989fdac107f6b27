// A stand-in for the CUDA runtime library, as far as compiled kernels and their launchers call it. Launches are checked by
// the runtime's rules and handed to a function that the tests set; there is no device.

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>
#include <unordered_map>

#define TAM_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr std::size_t kSharedBytesWithoutAsking = 48 * 1024;

// Of a launch: the kernel's name in the PTX, grid, block, dynamic shared memory, an address for every parameter.
using LaunchHandler = int (*)(const char* kernel, const unsigned* grid, const unsigned* block, std::size_t shared_bytes,
                              void** parameters);

struct Function {
    std::string name;
    std::size_t shared_bytes = kSharedBytesWithoutAsking;  // that launches may ask for
};

// By the address of the kernel's stub. The runtime, too, knows a function by no other thing.
std::unordered_map<const void*, Function>& functions() {
    static std::unordered_map<const void*, Function> all;
    return all;
}

// An H100, unless the tests say otherwise.
int multiprocessors = 132;
int largest_shared_bytes = 227 * 1024;
LaunchHandler launch_handler = nullptr;

thread_local cudaError_t last_error = cudaSuccess;

cudaError_t result(cudaError_t error) {
    if (error != cudaSuccess) {
        last_error = error;
    }
    return error;
}

// Limits of compute capability 3.0 and later.
bool is_valid(const dim3& grid, const dim3& block) {
    return grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.x <= 0x7fffffffu && grid.y <= 65535 && grid.z <= 65535 &&
           block.x > 0 && block.y > 0 && block.z > 0 && block.x <= 1024 && block.y <= 1024 && block.z <= 64 &&
           block.x * block.y * block.z <= 1024;
}

cudaError_t launch(const void* address, const dim3& grid, const dim3& block, void** parameters, std::size_t shared_bytes) {
    const auto found = functions().find(address);
    if (found == functions().end()) {
        return cudaErrorInvalidDeviceFunction;
    }
    if (!is_valid(grid, block)) {
        return cudaErrorInvalidConfiguration;
    }
    if (shared_bytes > found->second.shared_bytes) {
        return cudaErrorInvalidValue;
    }
    if (launch_handler == nullptr) {
        return cudaErrorNoDevice;
    }
    const unsigned blocks[] = {grid.x, grid.y, grid.z};
    const unsigned threads[] = {block.x, block.y, block.z};
    return static_cast<cudaError_t>(launch_handler(found->second.name.c_str(), blocks, threads, shared_bytes, parameters));
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------- for tests

TAM_EXPORT void set_launch_handler(LaunchHandler handler) {
    launch_handler = handler;
}

TAM_EXPORT void set_device(int new_multiprocessors, int new_largest_shared_bytes) {
    multiprocessors = new_multiprocessors;
    largest_shared_bytes = new_largest_shared_bytes;
    for (auto& [address, function] : functions()) {
        function.shared_bytes = kSharedBytesWithoutAsking;
    }
}

// Dynamic shared memory that launches of a kernel may ask for.
TAM_EXPORT std::size_t shared_bytes_allowed(const char* kernel) {
    for (const auto& [address, function] : functions()) {
        if (function.name == kernel) {
            return function.shared_bytes;
        }
    }
    return 0;
}

// What cudaPeekAtLastError says.
TAM_EXPORT int pending_error() {
    return last_error;
}

// ------------------------------------------------------------------------------------------------- called by launchers

extern "C" {

cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
    if (device != 0) {
        return result(cudaErrorInvalidDevice);
    }
    switch (attribute) {
        case cudaDevAttrMultiProcessorCount: *value = multiprocessors; return cudaSuccess;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = largest_shared_bytes; return cudaSuccess;
        default: return result(cudaErrorInvalidValue);
    }
}

cudaError_t cudaFuncSetAttribute(const void* address, cudaFuncAttribute attribute, int value) {
    const auto found = functions().find(address);
    if (found == functions().end()) {
        return result(cudaErrorInvalidDeviceFunction);
    }
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 || value > largest_shared_bytes) {
        return result(cudaErrorInvalidValue);
    }
    found->second.shared_bytes = static_cast<std::size_t>(value);
    return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void* address, dim3 grid, dim3 block, void** parameters, std::size_t shared_bytes,
                             cudaStream_t) {
    return result(launch(address, grid, block, parameters, shared_bytes));
}

cudaError_t cudaGetLastError() {
    const cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess: return "no error";
        case cudaErrorInvalidValue: return "invalid argument";
        case cudaErrorInvalidConfiguration: return "invalid configuration argument";
        case cudaErrorInvalidDeviceFunction: return "invalid device function";
        case cudaErrorNoDevice: return "no CUDA-capable device is detected";
        case cudaErrorLaunchFailure: return "unspecified launch failure";
        default: return "unrecognized error code";
    }
}

// ------------------------------------------------------------------------------- called by what nvcc makes of a kernel

void** __cudaRegisterFatBinary(void* binary) {
    return static_cast<void**>(binary);  // one handle is as good as another
}

void __cudaRegisterFatBinaryEnd(void**) {}

void __cudaUnregisterFatBinary(void**) {}

void __cudaRegisterFunction(void**, const char* address, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*, int*) {
    functions()[address].name = name;
}

// Stubs of kernels are not called: launchers pass their addresses.

cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, std::size_t*, void*) {
    return result(cudaErrorMissingConfiguration);
}

cudaError_t __cudaGetKernel(cudaKernel_t*, const void*) {
    return result(cudaErrorMissingConfiguration);
}

cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, std::size_t, cudaStream_t) {
    return result(cudaErrorMissingConfiguration);
}

}  // extern "C"
