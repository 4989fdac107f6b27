#include "arguments.h"
#include "register.h"
#include "tam_fast/token_scores.h"

namespace tam::bindings {
namespace {

// (hidden, token ids, output address)
TokenScoresParams read(py::handle object, const MatrixView& classifier) {
    const Fields fields(object, "items", 3);
    TokenScoresParams params;
    params.hidden = matrix(fields[0], "hidden");
    params.classifier = classifier;
    expect_equal(params.hidden.cols, classifier.cols, "hidden: channels");
    params.token_ids = index(fields[1], "token_ids", classifier.rows - 1);
    params.scores = fields.pointer<float>(2, params.hidden.rows == 0 || params.token_ids.size == 0);
    return params;
}

void run(py::handle items, py::handle classifier, int threads) {
    expect_threads(threads);
    const MatrixView weights = matrix(classifier, "classifier");
    const auto params = read_items<TokenScoresParams>(items, "items", [&](py::handle item) { return read(item, weights); });
    const py::gil_scoped_release release;
    token_scores(params.data(), static_cast<std::int64_t>(params.size()), threads);
}

}  // namespace

void register_token_scores(py::module_& module) {
    module.def("token_scores", &run, py::arg("items"), py::arg("classifier"), py::arg("threads"));
}

}  // namespace tam::bindings
