#include "arguments.h"
#include "register.h"
#include "tam_fast/rank_gaussian_filter.h"
#include "tam_fast/sorting_network.h"

namespace tam::bindings {
namespace {

// (input address, output address, dtype, sizes, strides)
RankGaussianFilterParams read(py::handle object, int kernel_size, bool constant_window_nan) {
    const Fields fields(object, "maps", 5);
    const Fields sizes(fields[3], "maps: sizes", -1);
    const Fields strides(fields[4], "maps: strides", sizes.size());
    RankGaussianFilterParams params;
    const Py_ssize_t leading = sizes.size() - 2;
    if (leading < 0 || leading > kMaxLeadingDims) {
        refuse("maps: expected 2 to " + std::to_string(kMaxLeadingDims + 2) + " dimensions, got " +
               std::to_string(sizes.size()));
    }
    params.leading_dims = static_cast<std::int32_t>(leading);
    bool empty = false;
    for (Py_ssize_t dim = 0; dim < leading; ++dim) {
        params.leading_sizes[dim] = sizes.size_at(dim);
        params.leading_strides[dim] = strides.integer(dim);
        empty = empty || params.leading_sizes[dim] == 0;
    }
    params.height = sizes.size_at(leading);
    params.width = sizes.size_at(leading + 1);
    params.row_stride = strides.integer(leading);
    params.col_stride = strides.integer(leading + 1);
    empty = empty || params.height == 0 || params.width == 0;
    params.input = fields.pointer<const void>(0, empty);
    params.output = fields.pointer<void>(1, empty);
    params.dtype = fields.dtype(2);
    params.kernel_size = kernel_size;
    params.constant_window_nan = constant_window_nan;
    return params;
}

void run(py::handle maps, int kernel_size, bool constant_window_nan, int threads) {
    expect_kernel_size(kernel_size, kMaxKernelSize);
    expect_threads(threads);
    const auto params = read_items<RankGaussianFilterParams>(
        maps, "maps", [=](py::handle item) { return read(item, kernel_size, constant_window_nan); });
    const py::gil_scoped_release release;
    rank_gaussian_filter(params.data(), static_cast<std::int64_t>(params.size()), threads);
}

py::list network(int kernel_size) {
    py::list pairs;
    for (const Comparator comparator : sorting_network(kernel_size)) {
        pairs.append(py::make_tuple(comparator.low, comparator.high));
    }
    return pairs;
}

}  // namespace

void register_rank_gaussian_filter(py::module_& module) {
    module.def("rank_gaussian_filter", &run, py::arg("maps"), py::arg("kernel_size"), py::arg("constant_window_nan"),
               py::arg("threads"));
    module.def("sorting_network", &network, py::arg("kernel_size"));
}

}  // namespace tam::bindings
