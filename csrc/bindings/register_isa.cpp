#include <optional>
#include <string>

#include <pybind11/stl.h>

#include "register.h"
#include "tam_fast/isa.h"

namespace tam::bindings {

void register_isa(pybind11::module_& module) {
    namespace py = pybind11;
    module.def("isa", [] { return isa_name(active_isa()); });
    module.def("last_isa", [] { return last_isa(); });
    module.def("set_isa", [](const std::optional<std::string>& name) { set_isa(name.value_or("")); }, py::arg("name"));
    module.def("available_isas", [] {
        std::vector<std::string> names;
        for (const Isa isa : available_isas()) {
            names.emplace_back(isa_name(isa));
        }
        return names;
    });
}

}  // namespace tam::bindings
