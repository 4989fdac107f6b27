#include <algorithm>
#include <optional>

#include <pybind11/stl.h>

#include "device_arguments.h"
#include "register.h"
#include "tam_fast/cuda/finish_maps.h"
#include "tam_fast/rank_gaussian_filter.h"

namespace tam::bindings {
namespace {

void check_answer(const cuda::AnswerItem& item, cuda::FinishStage stage, std::int64_t shared_positions) {
    if (item.targets == 0) {
        return;
    }
    if (item.positions > 0) {
        expect_address(item.maps, "maps");
    }
    if (stage == cuda::FinishStage::causal) {
        if (item.maps_uint8) {
            refuse("maps: expected F32 where maps are not normalised, got U8");
        }
        return;
    }
    if (item.text_size > 0) {
        expect_address(item.text.data, "text");
    }
    if (item.positions > shared_positions) {
        expect_address(item.interference, "interference");
        if (static_cast<void*>(item.interference) == item.maps) {
            refuse("interference: expected memory of its own where maps have more than " + std::to_string(shared_positions) +
                   " positions, got that of maps of " + std::to_string(item.positions));
        }
    }
}

void run(py::handle items, int kernel_size, bool constant_window_nan, int stage, std::uintptr_t stream,
         std::optional<std::int64_t> shared_positions) {
    expect_kernel_size(kernel_size, kMaxKernelSize);
    if (stage != static_cast<int>(cuda::FinishStage::maps) && stage != static_cast<int>(cuda::FinishStage::causal)) {
        refuse("stage: expected FINISH_MAPS or FINISH_CAUSAL, got " + std::to_string(stage));
    }
    const auto finish_stage = static_cast<cuda::FinishStage>(stage);
    const std::int64_t fitting = cuda::finish_maps_shared_positions();
    const std::int64_t shared = std::min(shared_positions.value_or(fitting), fitting);
    const auto params = read_items<cuda::AnswerItem>(items, "items", answer);
    for (const cuda::AnswerItem& item : params) {
        check_answer(item, finish_stage, shared);
    }
    cudaError_t error = cudaSuccess;
    {
        const py::gil_scoped_release release;
        error = cuda::launch_finish_maps(params.data(), static_cast<std::int64_t>(params.size()), kernel_size,
                                         constant_window_nan, finish_stage, shared, stream_of(stream));
    }
    check(error, "finish_maps");
}

}  // namespace

void register_finish_maps(py::module_& module) {
    module.attr("FINISH_MAPS") = static_cast<int>(cuda::FinishStage::maps);
    module.attr("FINISH_CAUSAL") = static_cast<int>(cuda::FinishStage::causal);
    module.def("finish_maps_shared_positions", &cuda::finish_maps_shared_positions);
    // shared_positions is for tests: fewer positions in shared memory than there is room for.
    module.def("finish_maps", &run, py::arg("items"), py::arg("kernel_size"), py::arg("constant_window_nan"),
               py::arg("stage"), py::arg("stream"), py::arg("shared_positions") = py::none());
}

}  // namespace tam::bindings
