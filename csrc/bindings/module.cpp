#include "register.h"
#include "tam_fast/params.h"

PYBIND11_MODULE(_C, module, pybind11::mod_gil_not_used()) {
    using namespace tam::bindings;
    module.doc() = "CPU kernels of tam_fast. Tensors are passed as addresses, sizes and strides in elements.";
    module.attr("__version__") = TAM_FAST_VERSION;
    module.attr("WITHOUT_CUDA") = TAM_FAST_WITHOUT_CUDA;
    module.attr("F32") = static_cast<int>(tam::DType::f32);
    module.attr("F16") = static_cast<int>(tam::DType::f16);
    module.attr("BF16") = static_cast<int>(tam::DType::bf16);
    module.attr("F64") = static_cast<int>(tam::DType::f64);

    register_isa(module);
    register_rank_gaussian_filter(module);
    register_token_scores(module);
    register_least_squares_scale(module);
    register_estimated_causal_inference(module);
    register_finish_maps(module);
}
