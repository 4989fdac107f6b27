#include "arguments.h"
#include "register.h"
#include "tam_fast/estimated_causal_inference.h"

namespace tam::bindings {
namespace {

// (activation, context, relevance, causal address, scale address)
EstimatedCausalInferenceParams read(py::handle object) {
    const Fields fields(object, "items", 5);
    EstimatedCausalInferenceParams params;
    params.activation = matrix(fields[0], "activation");
    params.context = matrix(fields[1], "context");
    params.relevance = matrix(fields[2], "relevance");
    expect_equal(params.context.cols, params.activation.cols, "context: positions");
    expect_equal(params.relevance.rows, params.activation.rows, "relevance: target tokens");
    expect_equal(params.relevance.cols, params.context.rows, "relevance: context tokens");
    params.causal = fields.pointer<float>(3, params.activation.rows == 0 || params.activation.cols == 0);
    params.scale = fields.pointer<float>(4, params.activation.rows == 0);
    return params;
}

void run(py::handle items, int threads) {
    expect_threads(threads);
    const auto params = read_items<EstimatedCausalInferenceParams>(items, "items", read);
    const py::gil_scoped_release release;
    estimated_causal_inference(params.data(), static_cast<std::int64_t>(params.size()), threads);
}

}  // namespace

void register_estimated_causal_inference(py::module_& module) {
    module.def("estimated_causal_inference", &run, py::arg("items"), py::arg("threads"));
}

}  // namespace tam::bindings
