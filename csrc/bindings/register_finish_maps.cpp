#include "arguments.h"
#include "register.h"
#include "tam_fast/finish_maps.h"
#include "tam_fast/rank_gaussian_filter.h"

namespace tam::bindings {
namespace {

std::vector<GridSize> read_grids(py::handle object, std::int64_t positions) {
    const auto grids = read_items<GridSize>(object, "grids", [](py::handle item) {
        const Fields side(item, "grids", 2);
        return GridSize{side.size_at(0), side.size_at(1)};
    });
    std::int64_t covered = 0;
    for (const GridSize& grid : grids) {
        if (grid.height == 0 || grid.width == 0 || grid.height > positions || grid.width > positions / grid.height) {
            refuse("grids: expected sides that make up " + std::to_string(positions) + " positions, got " +
                   std::to_string(grid.height) + " x " + std::to_string(grid.width));
        }
        covered += grid.height * grid.width;
    }
    expect_equal(covered, positions, "grids: positions");
    return grids;
}

// (scores, activation rows, context rows, relevance, text relevance, text length, grids, maps, text, scale, flat addresses)
FinishMapsParams read(py::handle object, int kernel_size, bool constant_window_nan,
                      std::vector<std::vector<GridSize>>& grids) {
    const Fields fields(object, "items", 11);
    FinishMapsParams params;
    params.scores = matrix(fields[0], "scores");
    params.activation_rows = index(fields[1], "activation_rows", params.scores.rows - 1);
    params.context_rows = index(fields[2], "context_rows", params.scores.rows - 1);
    params.relevance = matrix(fields[3], "relevance");
    params.text_relevance = matrix(fields[4], "text_relevance");
    params.text_length = index(fields[5], "text_length", params.text_relevance.cols);
    const std::int64_t targets = params.relevance.rows;
    const std::int64_t contexts = params.relevance.cols;
    const bool all_targets = fields[1].is_none();
    const bool all_contexts = fields[2].is_none();
    if (!all_targets || targets > params.scores.rows) {
        expect_equal(all_targets ? params.scores.rows : params.activation_rows.size, targets,
                     "activation_rows: target tokens");
    }
    if (!all_contexts || contexts > params.scores.rows) {
        expect_equal(all_contexts ? params.scores.rows : params.context_rows.size, contexts, "context_rows: context tokens");
    }
    expect_equal(params.text_relevance.rows, targets, "text_relevance: target tokens");
    if (!fields[5].is_none()) {
        expect_equal(params.text_length.size, targets, "text_length: target tokens");
    }
    grids.push_back(read_grids(fields[6], params.scores.cols));
    params.grids = grids.back().data();
    params.grid_count = static_cast<std::int64_t>(grids.back().size());
    params.kernel_size = kernel_size;
    params.constant_window_nan = constant_window_nan;
    params.maps = fields.pointer<float>(7, targets == 0 || params.scores.cols == 0);
    params.text = fields.pointer<float>(8, targets == 0 || params.text_relevance.cols == 0);
    params.scale = fields.pointer<float>(9, targets == 0);
    params.flat = fields.pointer<std::uint8_t>(10, targets == 0);
    return params;
}

void run(py::handle items, int kernel_size, bool constant_window_nan, int threads) {
    expect_kernel_size(kernel_size, kMaxKernelSize);
    expect_threads(threads);
    std::vector<std::vector<GridSize>> grids;
    const auto params = read_items<FinishMapsParams>(
        items, "items", [&](py::handle item) { return read(item, kernel_size, constant_window_nan, grids); });
    const py::gil_scoped_release release;
    finish_maps(params.data(), static_cast<std::int64_t>(params.size()), threads);
}

}  // namespace

void register_finish_maps(py::module_& module) {
    module.def("finish_maps", &run, py::arg("items"), py::arg("kernel_size"), py::arg("constant_window_nan"),
               py::arg("threads"));
}

}  // namespace tam::bindings
