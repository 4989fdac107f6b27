#pragma once

#include <pybind11/pybind11.h>

namespace tam::bindings {

void register_rank_gaussian_filter(pybind11::module_& module);
void register_token_scores(pybind11::module_& module);
void register_least_squares_scale(pybind11::module_& module);
void register_estimated_causal_inference(pybind11::module_& module);
void register_finish_maps(pybind11::module_& module);
void register_stream_step(pybind11::module_& module);

}  // namespace tam::bindings
