#pragma once

#include "tam_fast/cuda/answer.h"
#include "tam_fast/cuda/runtime.h"

namespace tam::cuda {

// Writes AnswerItem::interference of every answer, from its context and relevance; zeros where nothing counts, nothing where
// K is 0.
cudaError_t launch_interference(const AnswerItem* answers, std::int64_t count, cudaStream_t stream);

}  // namespace tam::cuda
