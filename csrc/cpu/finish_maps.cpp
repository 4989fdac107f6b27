#include "tam_fast/finish_maps.h"

#include <algorithm>

#include "context_rows.h"
#include "dispatch.h"
#include "estimated_causal_inference_kernels.h"
#include "finish_maps_kernels.h"
#include "parallel.h"
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

void finish(const FinishMapsParams& params, const Kernels& kernels, int threads) {
    const std::int64_t targets = params.relevance.rows;
    const std::int64_t contexts = params.relevance.cols;
    const std::int64_t size = params.scores.cols;
    const std::int64_t text_size = params.text_relevance.cols;
    const double cost = 0.03 * static_cast<double>(targets) * static_cast<double>(contexts + 60) * static_cast<double>(size);
    const int workers = worthwhile_threads(cost, threads);
    const ContextRows context(kernels.rows, params.scores, params.context_rows, contexts, workers);
    const std::int64_t step = targets_per_task(targets, size, workers);
    const std::int64_t pitch = work_pitch(size);
    parallel_for((targets + step - 1) / step, workers, [&](std::int64_t task) {
        const std::int64_t first = task * step;
        const std::int64_t count = std::min(step, targets - first);
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
        kernels.inference.infer_f32({activation, relevance, context.rows(), context.special(), count, contexts, size, work,
                                     pitch, work, pitch, params.scale + first});
        for (std::int64_t i = 0; i < count; ++i) {
            const std::int64_t t = first + i;
            const float* const text = row_f32(kernels.rows, params.text_relevance, t, text_buffers + i * text_size);
            const std::int64_t length = params.text_length.data == nullptr ? text_size : index_at(params.text_length, t);
            const bool flat =
                kernels.finish.normalise_f32(work + i * pitch, size, text, length, text_size, params.text + t * text_size);
            params.flat[t] = flat ? 1 : 0;
            filter_grids(params, kernels, work + i * pitch, params.maps + t * size);
        }
    });
}

}  // namespace
}  // namespace tam::cpu

namespace tam {

void finish_maps(const FinishMapsParams* items, std::int64_t count, int threads) {
    using namespace cpu;
    const Kernels kernels{rows_kernels(), estimated_causal_inference_kernels(), select_kernels(kKernels),
                          rank_gaussian_filter_kernels()};
    for (std::int64_t i = 0; i < count; ++i) {
        finish(items[i], kernels, threads);
    }
}

}  // namespace tam
