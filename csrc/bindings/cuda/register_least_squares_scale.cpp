#include "device_arguments.h"
#include "register.h"
#include "tam_fast/cuda/least_squares_scale.h"

namespace tam::bindings {
namespace {

// (target address, dtype, row stride, interference address, dtype, row stride, T, N, scale address)
cuda::LeastSquaresScaleItem read(py::handle object) {
    const Fields fields(object, "items", 9);
    const std::int64_t rows = fields.size_at(6);
    const std::int64_t size = fields.size_at(7);
    const bool empty = rows == 0 || size == 0;
    cuda::LeastSquaresScaleItem item;
    item.target = {fields.pointer<const void>(0, empty), fields.dtype(1), rows, size, fields.integer(2), 1};
    item.interference = {fields.pointer<const void>(3, empty), fields.dtype(4), rows, size, fields.integer(5), 1};
    item.scale = fields.pointer<float>(8, rows == 0);
    return item;
}

void run(py::handle items, std::uintptr_t stream) {
    const auto list = read_items<cuda::LeastSquaresScaleItem>(items, "items", read);
    cudaError_t error = cudaSuccess;
    {
        const py::gil_scoped_release release;
        error = cuda::launch_least_squares_scale(list.data(), static_cast<std::int64_t>(list.size()), stream_of(stream));
    }
    check(error, "least_squares_scale");
}

}  // namespace

void register_least_squares_scale(py::module_& module) {
    module.def("least_squares_scale", &run, py::arg("items"), py::arg("stream"));
}

}  // namespace tam::bindings
