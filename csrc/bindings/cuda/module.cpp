#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "device_arguments.h"
#include "register.h"

#ifdef TAM_FAST_EMULATION
#include "emulation.h"
#endif

namespace {

// "80-real;100-virtual" -> "80", "100-virtual"
std::vector<std::string> architectures() {
    std::vector<std::string> names;
    std::string rest = TAM_FAST_CUDA_ARCHITECTURES;
    while (!rest.empty()) {
        const std::size_t end = rest.find(',');
        std::string name = rest.substr(0, end);
        const std::size_t kind = name.find("-real");
        names.push_back(name.substr(0, kind));
        rest = end == std::string::npos ? "" : rest.substr(end + 1);
    }
    return names;
}

}  // namespace

PYBIND11_MODULE(TAM_FAST_CUDA_MODULE, module, pybind11::mod_gil_not_used()) {
    using namespace tam::bindings;
    module.doc() = "CUDA kernels of tam_fast. Tensors are passed as device addresses, sizes and strides in elements.";
    module.attr("__version__") = TAM_FAST_VERSION;
    module.attr("F32") = static_cast<int>(tam::DType::f32);
    module.attr("F16") = static_cast<int>(tam::DType::f16);
    module.attr("BF16") = static_cast<int>(tam::DType::bf16);
    module.attr("F64") = static_cast<int>(tam::DType::f64);
    module.attr("U8") = kUint8;
    module.def("architectures", &architectures);
#ifdef TAM_FAST_EMULATION
    module.attr("emulated") = true;
    module.def("set_seed", &tam::cuda::emulation::set_seed, pybind11::arg("seed"));
    module.def("launches", &tam::cuda::emulation::launches);
#else
    module.attr("emulated") = false;
#endif

    register_rank_gaussian_filter(module);
    register_token_scores(module);
    register_least_squares_scale(module);
    register_estimated_causal_inference(module);
    register_finish_maps(module);
    register_stream_step(module);
}
