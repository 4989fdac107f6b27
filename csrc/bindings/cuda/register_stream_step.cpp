#include "device_arguments.h"
#include "register.h"
#include "tam_fast/cuda/stream_step.h"

namespace tam::bindings {
namespace {

// (address, dtype, rows, columns, row stride), unit column stride
MatrixView states(py::handle object, const char* what) {
    const Fields fields(object, what, 5);
    MatrixView view;
    view.dtype = fields.dtype(1);
    view.rows = fields.size_at(2);
    view.cols = fields.size_at(3);
    view.row_stride = fields.integer(4);
    view.data = fields.pointer<const void>(0, view.rows == 0 || view.cols == 0);
    return view;
}

// (prompt, (positions address, their number), states, classifier, state address, context tokens of the prompt,
//  (scores address, row stride), (context rows, context names, activation row, target name, length addresses),
//  flag address or 0)
cuda::StreamStep read(py::handle object) {
    const Fields fields(object, "item", 9);
    cuda::StreamStep step;
    step.prompt = states(fields[0], "prompt");
    const Fields positions(fields[1], "positions", 2);
    step.position_count = positions.size_at(1);
    step.positions = positions.pointer<const std::int64_t>(0, step.position_count == 0);
    step.states = states(fields[2], "states");
    step.classifier = states(fields[3], "classifier");
    expect_equal(step.prompt.cols, step.classifier.cols, "prompt: channels");
    expect_equal(step.states.cols, step.classifier.cols, "states: channels");
    step.state = fields.pointer<const std::int64_t>(4, false);
    step.prompt_text = fields.size_at(5);
    const Fields scores(fields[6], "scores", 2);
    step.scores = scores.pointer<float>(0, step.position_count + step.states.rows == 0);
    step.row_stride = scores.integer(1);
    const Fields context(fields[7], "context", 5);
    step.context_rows = context.pointer<std::int64_t>(0, step.prompt_text + step.states.rows == 0);
    step.context_names = context.pointer<std::int64_t>(1, step.prompt_text + step.states.rows == 0);
    step.activation_row = context.pointer<std::int64_t>(2, false);
    step.target_name = context.pointer<std::int64_t>(3, false);
    step.length = context.pointer<std::int64_t>(4, false);
    step.flag = fields.pointer<std::int32_t>(8, true);
    return step;
}

void run(py::handle item, std::uintptr_t stream) {
    const cuda::StreamStep step = read(item);
    cudaError_t error = cudaSuccess;
    {
        const py::gil_scoped_release release;
        error = cuda::launch_stream_step(step, stream_of(stream));
    }
    check(error, "step_scores");
}

}  // namespace

void register_stream_step(py::module_& module) {
    module.def("step_scores", &run, py::arg("item"), py::arg("stream"));
}

}  // namespace tam::bindings
