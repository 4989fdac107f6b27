#include "device_arguments.h"
#include "register.h"
#include "tam_fast/cuda/rank_gaussian_filter.h"
#include "tam_fast/rank_gaussian_filter.h"

namespace tam::bindings {
namespace {

// (input, output, dtype, count, height, width, map stride, row stride, column stride)
cuda::RankGaussianFilterItem read(py::handle object) {
    const Fields fields(object, "items", 9);
    cuda::RankGaussianFilterItem item;
    item.dtype = fields.dtype(2);
    item.count = fields.size_at(3);
    item.height = fields.size_at(4);
    item.width = fields.size_at(5);
    const bool empty = item.count == 0 || item.height == 0 || item.width == 0;
    item.input = fields.pointer<const void>(0, empty);
    item.output = fields.pointer<void>(1, empty);
    item.map_stride = fields.integer(6);
    item.row_stride = fields.integer(7);
    item.col_stride = fields.integer(8);
    return item;
}

void run(py::handle items, int kernel_size, bool constant_window_nan, std::uintptr_t stream) {
    expect_kernel_size(kernel_size, kMaxKernelSize);
    const auto params = read_items<cuda::RankGaussianFilterItem>(items, "items", read);
    cudaError_t error = cudaSuccess;
    {
        const py::gil_scoped_release release;
        error = cuda::launch_rank_gaussian_filter(params.data(), static_cast<std::int64_t>(params.size()), kernel_size,
                                                  constant_window_nan, stream_of(stream));
    }
    check(error, "rank_gaussian_filter");
}

}  // namespace

void register_rank_gaussian_filter(py::module_& module) {
    module.def("rank_gaussian_filter", &run, py::arg("items"), py::arg("kernel_size"), py::arg("constant_window_nan"),
               py::arg("stream"));
}

}  // namespace tam::bindings
