#include "tam_fast/finish_maps.h"

#include <algorithm>

#include "context_rows.h"
#include "dispatch.h"
#include "estimated_causal_inference_kernels.h"
#include "finish_maps_kernels.h"
#include "rank_gaussian_filter_kernels.h"
#include "scratch.h"

namespace tam::cpu {
namespace {

constexpr const FinishMapsKernels* kKernels[kIsaCount] = TAM_KERNEL_TABLES(finish_maps);

struct Kernels {
    const RowsKernels& rows;
    const EstimatedCausalInferenceKernels& inference;
    const FinishMapsKernels& finish;
    const RankGaussianFilterKernels& filter;
};

// Filters a normalised row, grid after grid, into the output.
void filter_grids(const FinishMapsParams& params, const Kernels& kernels, const float* row, float* output) {
    if (params.kernel_size == 1) {
        std::copy(row, row + params.scores.cols, output);
        return;
    }
    for (std::int64_t g = 0; g < params.grid_count; ++g) {
        const GridSize& grid = params.grids[g];
        FilterMap map;
        map.input = row;
        map.output = output;
        map.height = grid.height;
        map.width = grid.width;
        map.row_stride = grid.width;
        filter_map(kernels.filter, map, params.kernel_size, params.constant_window_nan);
        row += grid.height * grid.width;
        output += grid.height * grid.width;
    }
}

struct Item {
    const FinishMapsParams& params;
    ContextRows context;
    std::int64_t step = 1;  // targets per task

    explicit Item(const FinishMapsParams& p) : params(p), context(p.scores, p.context_rows, p.relevance.cols) {}

    std::int64_t targets() const { return params.relevance.rows; }
    std::int64_t size() const { return params.scores.cols; }
    double cost() const {
        return 0.02 * static_cast<double>(targets()) * static_cast<double>(params.relevance.cols + 60) *
               static_cast<double>(size());
    }
    std::int64_t tasks() const { return (targets() + step - 1) / step; }
};

void finish(const Item& item, const Kernels& kernels, std::int64_t task) {
    const FinishMapsParams& params = item.params;
    const std::int64_t contexts = params.relevance.cols;
    const std::int64_t size = item.size();
    const std::int64_t text_size = params.text_relevance.cols;
    const std::int64_t pitch = work_pitch(size);
    const std::int64_t first = task * item.step;
    const std::int64_t count = std::min(item.step, item.targets() - first);
    float* const work =
        static_cast<float*>(scratch(ScratchSlot::interference, static_cast<std::size_t>(count * pitch) * sizeof(float)));
    float* const buffers = static_cast<float*>(
        scratch(ScratchSlot::rows, static_cast<std::size_t>(count * (size + contexts + text_size)) * sizeof(float)));
    float* const relevance_buffers = buffers + count * size;
    float* const text_buffers = relevance_buffers + count * contexts;
    const float* activation[kMaxInterferenceRows];
    const float* relevance[kMaxInterferenceRows];
    for (std::int64_t i = 0; i < count; ++i) {
        activation[i] =
            row_f32(kernels.rows, params.scores, index_at(params.activation_rows, first + i), buffers + i * size);
        relevance[i] = row_f32(kernels.rows, params.relevance, first + i, relevance_buffers + i * contexts);
    }
    kernels.inference.infer_f32(
        {activation, relevance, item.context.rows(), count, contexts, size, work, pitch, work, pitch, params.scale + first});
    for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t t = first + i;
        const float* const text = row_f32(kernels.rows, params.text_relevance, t, text_buffers + i * text_size);
        const std::int64_t length = params.text_length.data == nullptr ? text_size : index_at(params.text_length, t);
        const bool flat =
            kernels.finish.normalise_f32(work + i * pitch, size, text, length, text_size, params.text + t * text_size);
        params.flat[t] = flat ? 1 : 0;
        filter_grids(params, kernels, work + i * pitch, params.maps + t * size);
    }
}

}  // namespace
}  // namespace tam::cpu

namespace tam {

void finish_maps(const FinishMapsParams* params, std::int64_t count, int threads) {
    using namespace cpu;
    const Kernels kernels{rows_kernels(), estimated_causal_inference_kernels(), select_kernels(kKernels),
                          rank_gaussian_filter_kernels()};
    for_targets_of_all<Item>(params, count, threads, kernels.rows,
                             [&](const Item& item, std::int64_t task) { finish(item, kernels, task); });
}

}  // namespace tam
