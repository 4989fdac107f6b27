#include "device_arguments.h"
#include "register.h"
#include "tam_fast/cuda/token_scores.h"

namespace tam::bindings {
namespace {

// (hidden, (positions address or 0, their number), (classes address, their number), scores address, row stride of scores)
cuda::TokenScoresItem read(py::handle object, const MatrixView& classifier) {
    const Fields fields(object, "items", 5);
    cuda::TokenScoresItem item;
    item.hidden = matrix(fields[0], "hidden");
    expect_equal(item.hidden.cols, classifier.cols, "hidden: channels");
    const Fields positions(fields[1], "positions", 2);
    item.positions = positions.pointer<const std::int64_t>(0, true);
    item.position_count = positions.size_at(1);
    const Fields classes(fields[2], "classes", 2);
    item.class_count = classes.size_at(1);
    item.classes = classes.pointer<const std::int64_t>(0, item.class_count == 0);
    item.scores = fields.pointer<float>(3, item.position_count == 0 || item.class_count == 0);
    item.row_stride = fields.integer(4);
    return item;
}

void run(py::handle items, py::handle classifier, std::uintptr_t flag, std::uintptr_t stream, std::uintptr_t workspace,
         std::int64_t workspace_bytes, int tile, int splits) {
    const MatrixView weights = matrix(classifier, "classifier");
    const auto list =
        read_items<cuda::TokenScoresItem>(items, "items", [&](py::handle item) { return read(item, weights); });
    if (workspace % 16 != 0) {
        refuse("workspace: expected an address that is a multiple of 16, got " + std::to_string(workspace));
    }
    const cuda::TokenScoresWorkspace memory{reinterpret_cast<void*>(workspace), workspace_bytes};
    cudaError_t error = cudaSuccess;
    {
        const py::gil_scoped_release release;
        error = cuda::launch_token_scores(list.data(), static_cast<std::int64_t>(list.size()), weights,
                                          reinterpret_cast<std::int32_t*>(flag), memory, {tile, splits}, stream_of(stream));
    }
    check(error, "token_scores");
}

}  // namespace

void register_token_scores(py::module_& module) {
    module.attr("TOKEN_SCORES_WORKSPACE_BYTES") = cuda::kTokenScoresWorkspaceBytes;
    module.def("token_scores", &run, py::arg("items"), py::arg("classifier"), py::arg("flag"), py::arg("stream"),
               py::arg("workspace") = 0, py::arg("workspace_bytes") = 0, py::arg("tile") = 0, py::arg("splits") = 1);
}

}  // namespace tam::bindings
