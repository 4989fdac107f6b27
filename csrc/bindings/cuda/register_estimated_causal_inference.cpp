#include "device_arguments.h"
#include "register.h"
#include "tam_fast/cuda/interference.h"

namespace tam::bindings {
namespace {

void run(py::handle items, std::uintptr_t stream) {
    const auto answers = read_items<cuda::AnswerItem>(items, "items", answer);
    cudaError_t error = cudaSuccess;
    {
        const py::gil_scoped_release release;
        error = cuda::launch_interference(answers.data(), static_cast<std::int64_t>(answers.size()), stream_of(stream));
    }
    check(error, "interference");
}

}  // namespace

void register_estimated_causal_inference(py::module_& module) {
    module.def("interference", &run, py::arg("items"), py::arg("stream"));
}

}  // namespace tam::bindings
