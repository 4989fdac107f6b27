#pragma once

#include <cstddef>
#include <cstdint>

#include "tam_fast/cuda/answer.h"
#include "tam_fast/cuda/runtime.h"

namespace tam::cuda {

enum class FinishStage : int {
    maps = 0,    // everything
    causal = 1,  // scale and causal map only: what estimated_causal_inference returns
};

// Positions of a map up to which its working memory is shared memory of the current device. A longer map is worked on in
// item.interference, which must then be there, also where there is no context, and must not be item.maps.
std::int64_t finish_maps_shared_positions();

// From activation and interference to finished maps, one block a target token: scale (Eq. 5), residual, joint normalisation
// with the text relevances (Eq. 3), rank Gaussian filter of every grid, uint8 if asked for.
//
// At most `shared_positions` positions are worked on in shared memory; no more than finish_maps_shared_positions().
cudaError_t launch_finish_maps(const AnswerItem* items, std::int64_t count, int kernel_size, bool constant_window_nan,
                               FinishStage stage, std::int64_t shared_positions, cudaStream_t stream);

}  // namespace tam::cuda
