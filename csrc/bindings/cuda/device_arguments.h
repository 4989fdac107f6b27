#pragma once

// Arguments of the CUDA kernels. What lies in device memory is not looked at here: addresses, sizes and strides only.

#include <stdexcept>
#include <string>

#include "../arguments.h"
#include "tam_fast/cuda/answer.h"
#include "tam_fast/cuda/runtime.h"

namespace tam::bindings {

// The code of uint8 maps beside those of DType.
inline constexpr int kUint8 = 4;

inline void check(cudaError_t error, const char* kernel) {
    if (error != cudaSuccess) {
        throw std::runtime_error(std::string(kernel) + ": " + cudaGetErrorString(error));
    }
}

inline cudaStream_t stream_of(std::uintptr_t address) {
    return reinterpret_cast<cudaStream_t>(address);
}

// (address, row stride, address of row indices or 0)
inline cuda::Rows rows(py::handle object, const char* what, bool may_be_null) {
    const Fields fields(object, what, 3);
    cuda::Rows result;
    result.data = fields.pointer<const float>(0, may_be_null);
    result.row_stride = fields.integer(1);
    result.rows = fields.pointer<const std::int64_t>(2, true);
    return result;
}

inline void expect_address(const void* address, const char* what) {
    if (address == nullptr) {
        refuse(std::string(what) + ": expected the address of a tensor with elements, got 0");
    }
}

// (grid count, height, width, address of a table or 0)
inline void read_grids(py::handle object, cuda::AnswerItem& item) {
    const Fields fields(object, "grids", 4);
    item.grid_count = fields.size_at(0);
    item.height = fields.size_at(1);
    item.width = fields.size_at(2);
    item.grids = fields.pointer<const std::int64_t>(3, true);
    const std::int64_t positions = item.positions;
    if (item.grids != nullptr || positions == 0) {
        return;
    }
    if (item.grid_count == 0 || item.height == 0 || item.width == 0 || item.grid_count > positions ||
        item.height > positions || item.width > positions / item.height ||
        item.grid_count * (item.height * item.width) != positions) {
        refuse("grids: expected sides that make up " + std::to_string(positions) + " positions, got " +
               std::to_string(item.grid_count) + " x " + std::to_string(item.height) + " x " + std::to_string(item.width));
    }
}

// (activation, context, relevance, (context names, target names, lengths), (text, row stride, rows, L, lengths), (T, K, N),
//  grids, interference, (maps, dtype or U8, text, scale, flat)); see AnswerItem.
inline cuda::AnswerItem answer(py::handle object) {
    const Fields fields(object, "items", 9);
    const Fields sizes(fields[5], "sizes", 3);
    cuda::AnswerItem item;
    item.targets = sizes.size_at(0);
    item.contexts = sizes.size_at(1);
    item.positions = sizes.size_at(2);
    const bool no_targets = item.targets == 0;
    const bool no_maps = no_targets || item.positions == 0;
    item.activation = rows(fields[0], "activation", no_maps);
    item.context = rows(fields[1], "context", no_maps || item.contexts == 0);
    item.relevance = rows(fields[2], "relevance", no_targets || item.contexts == 0);
    const Fields names(fields[3], "names", 3);
    item.context_names = names.pointer<const std::int64_t>(0, true);
    item.target_names = names.pointer<const std::int64_t>(1, true);
    item.lengths = names.pointer<const std::int64_t>(2, true);
    const Fields text(fields[4], "text", 5);
    item.text.data = text.pointer<const float>(0, true);
    item.text.row_stride = text.integer(1);
    item.text.rows = text.pointer<const std::int64_t>(2, true);
    item.text_size = text.size_at(3);
    item.text_lengths = text.pointer<const std::int64_t>(4, true);
    read_grids(fields[6], item);
    item.interference = fields.pointer<float>(7, no_maps || item.contexts == 0);
    const Fields out(fields[8], "outputs", 5);
    item.maps = out.pointer<void>(0, true);
    const std::int64_t dtype = out.integer(1);
    if (dtype != static_cast<std::int64_t>(DType::f32) && dtype != kUint8) {
        refuse("maps: expected one of F32, U8, got " + std::to_string(dtype));
    }
    item.maps_uint8 = dtype == kUint8;
    item.text_out = out.pointer<float>(2, true);
    item.scale = out.pointer<float>(3, true);
    item.flat = out.pointer<std::uint8_t>(4, true);
    return item;
}

}  // namespace tam::bindings
