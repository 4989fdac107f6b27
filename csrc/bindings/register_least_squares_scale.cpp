#include "arguments.h"
#include "register.h"
#include "tam_fast/least_squares_scale.h"

namespace tam::bindings {
namespace {

// (target address, target dtype, target strides, interference address, its dtype, its strides, sizes, output address)
LeastSquaresScaleParams read(py::handle object) {
    const Fields fields(object, "items", 8);
    const Fields sizes(fields[6], "sizes", -1);
    const Py_ssize_t leading = sizes.size() - 1;
    if (leading < 0 || leading > kMaxLeadingDims) {
        refuse("target: expected 1 to " + std::to_string(kMaxLeadingDims + 1) + " dimensions, got " +
               std::to_string(sizes.size()));
    }
    const Fields target_strides(fields[2], "target: strides", sizes.size());
    const Fields interference_strides(fields[5], "interference: strides", sizes.size());
    LeastSquaresScaleParams params;
    params.leading_dims = static_cast<std::int32_t>(leading);
    bool empty = false;
    for (Py_ssize_t dim = 0; dim < leading; ++dim) {
        params.leading_sizes[dim] = sizes.size_at(dim);
        params.target_leading_strides[dim] = target_strides.integer(dim);
        params.interference_leading_strides[dim] = interference_strides.integer(dim);
        empty = empty || params.leading_sizes[dim] == 0;
    }
    params.size = sizes.size_at(leading);
    params.target_stride = target_strides.integer(leading);
    params.interference_stride = interference_strides.integer(leading);
    params.target = fields.pointer<const void>(0, empty || params.size == 0);
    params.target_dtype = fields.dtype(1);
    params.interference = fields.pointer<const void>(3, empty || params.size == 0);
    params.interference_dtype = fields.dtype(4);
    params.scale = fields.pointer<float>(7, empty);
    return params;
}

void run(py::handle items, int threads) {
    expect_threads(threads);
    const auto params = read_items<LeastSquaresScaleParams>(items, "items", read);
    const py::gil_scoped_release release;
    least_squares_scale(params.data(), static_cast<std::int64_t>(params.size()), threads);
}

}  // namespace

void register_least_squares_scale(py::module_& module) {
    module.def("least_squares_scale", &run, py::arg("items"), py::arg("threads"));
}

}  // namespace tam::bindings
