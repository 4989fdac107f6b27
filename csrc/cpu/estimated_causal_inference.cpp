#include "tam_fast/estimated_causal_inference.h"

#include <algorithm>

#include "context_rows.h"
#include "dispatch.h"
#include "estimated_causal_inference_kernels.h"
#include "scratch.h"

namespace tam::cpu {
namespace {

constexpr const EstimatedCausalInferenceKernels* kKernels[kIsaCount] = TAM_KERNEL_TABLES(estimated_causal_inference);

struct Item {
    const EstimatedCausalInferenceParams& params;
    ContextRows context;
    std::int64_t step = 1;  // targets per task

    explicit Item(const EstimatedCausalInferenceParams& p) : params(p), context(p.context, {}, p.context.rows) {}

    std::int64_t targets() const { return params.activation.rows; }
    std::int64_t size() const { return params.activation.cols; }
    double cost() const {
        return 0.02 * static_cast<double>(targets()) * static_cast<double>(params.context.rows + 20) *
               static_cast<double>(size());
    }
    std::int64_t tasks() const { return (targets() + step - 1) / step; }
};

void infer(const Item& item, const RowsKernels& rows, const EstimatedCausalInferenceKernels& kernels, std::int64_t task) {
    const EstimatedCausalInferenceParams& params = item.params;
    const std::int64_t contexts = params.context.rows;
    const std::int64_t size = item.size();
    const std::int64_t pitch = work_pitch(size);
    const std::int64_t first = task * item.step;
    const std::int64_t count = std::min(item.step, item.targets() - first);
    float* const work =
        static_cast<float*>(scratch(ScratchSlot::interference, static_cast<std::size_t>(count * pitch) * sizeof(float)));
    float* const buffers =
        static_cast<float*>(scratch(ScratchSlot::rows, static_cast<std::size_t>(count * (size + contexts)) * sizeof(float)));
    const float* activation[kMaxInterferenceRows];
    const float* relevance[kMaxInterferenceRows];
    for (std::int64_t i = 0; i < count; ++i) {
        activation[i] = row_f32(rows, params.activation, first + i, buffers + i * size);
        relevance[i] = row_f32(rows, params.relevance, first + i, buffers + count * size + i * contexts);
    }
    kernels.infer_f32({activation, relevance, item.context.rows(), count, contexts, size, work, pitch,
                       params.causal + first * size, size, params.scale + first});
}

}  // namespace

const EstimatedCausalInferenceKernels& estimated_causal_inference_kernels() {
    return select_kernels(kKernels);
}

}  // namespace tam::cpu

namespace tam {

void estimated_causal_inference(const EstimatedCausalInferenceParams* params, std::int64_t count, int threads) {
    using namespace cpu;
    const RowsKernels& rows = rows_kernels();
    const EstimatedCausalInferenceKernels& kernels = estimated_causal_inference_kernels();
    for_targets_of_all<Item>(params, count, threads, rows,
                             [&](const Item& item, std::int64_t task) { infer(item, rows, kernels, task); });
}

}  // namespace tam
