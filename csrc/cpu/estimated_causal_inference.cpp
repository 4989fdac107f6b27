#include "tam_fast/estimated_causal_inference.h"

#include <algorithm>

#include "context_rows.h"
#include "dispatch.h"
#include "estimated_causal_inference_kernels.h"
#include "parallel.h"
#include "scratch.h"

namespace tam::cpu {
namespace {

constexpr const EstimatedCausalInferenceKernels* kKernels[kIsaCount] = TAM_KERNEL_TABLES(estimated_causal_inference);

void infer(const EstimatedCausalInferenceParams& params, const RowsKernels& rows,
           const EstimatedCausalInferenceKernels& kernels, int threads) {
    const std::int64_t targets = params.activation.rows;
    const std::int64_t contexts = params.context.rows;
    const std::int64_t size = params.activation.cols;
    const double cost = 0.03 * static_cast<double>(targets) * static_cast<double>(contexts + 20) * static_cast<double>(size);
    const int workers = worthwhile_threads(cost, threads);
    const ContextRows context(rows, params.context, {}, contexts, workers);
    const std::int64_t step = targets_per_task(targets, size, workers);
    const std::int64_t pitch = work_pitch(size);
    parallel_for((targets + step - 1) / step, workers, [&](std::int64_t task) {
        const std::int64_t first = task * step;
        const std::int64_t count = std::min(step, targets - first);
        float* const work =
            static_cast<float*>(scratch(ScratchSlot::interference, static_cast<std::size_t>(count * pitch) * sizeof(float)));
        float* const buffers = static_cast<float*>(
            scratch(ScratchSlot::rows, static_cast<std::size_t>(count * (size + contexts)) * sizeof(float)));
        const float* activation[kMaxInterferenceRows];
        const float* relevance[kMaxInterferenceRows];
        for (std::int64_t i = 0; i < count; ++i) {
            activation[i] = row_f32(rows, params.activation, first + i, buffers + i * size);
            relevance[i] = row_f32(rows, params.relevance, first + i, buffers + count * size + i * contexts);
        }
        kernels.infer_f32({activation, relevance, context.rows(), context.special(), count, contexts, size, work, pitch,
                           params.causal + first * size, size, params.scale + first});
    });
}

}  // namespace

const EstimatedCausalInferenceKernels& estimated_causal_inference_kernels() {
    return select_kernels(kKernels);
}

}  // namespace tam::cpu

namespace tam {

void estimated_causal_inference(const EstimatedCausalInferenceParams* items, std::int64_t count, int threads) {
    const cpu::RowsKernels& rows = cpu::rows_kernels();
    const cpu::EstimatedCausalInferenceKernels& kernels = cpu::estimated_causal_inference_kernels();
    for (std::int64_t i = 0; i < count; ++i) {
        cpu::infer(items[i], rows, kernels, threads);
    }
}

}  // namespace tam
