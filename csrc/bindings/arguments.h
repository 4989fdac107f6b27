#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

#include "tam_fast/params.h"

namespace tam::bindings {

namespace py = pybind11;

[[noreturn]] inline void refuse(const std::string& message) {
    throw py::value_error(message);
}

// A Python sequence of known length, read item by item. Errors name `what`.
class Fields {
  public:
    Fields(py::handle object, const char* what, Py_ssize_t expected) : what_(what) {
        items_ = py::reinterpret_steal<py::object>(PySequence_Fast(object.ptr(), what));
        if (!items_) {
            throw py::error_already_set();
        }
        if (expected >= 0 && size() != expected) {
            refuse(std::string(what) + ": expected " + std::to_string(expected) + " fields, got " + std::to_string(size()));
        }
    }

    Py_ssize_t size() const { return PySequence_Fast_GET_SIZE(items_.ptr()); }
    py::handle operator[](Py_ssize_t i) const { return PySequence_Fast_GET_ITEM(items_.ptr(), i); }

    std::int64_t integer(Py_ssize_t i) const {
        const long long value = PyLong_AsLongLong((*this)[i].ptr());
        if (value == -1 && PyErr_Occurred() != nullptr) {
            throw py::error_already_set();
        }
        return value;
    }

    std::int64_t size_at(Py_ssize_t i) const {
        const std::int64_t value = integer(i);
        if (value < 0) {
            refuse(std::string(what_) + ": expected a size, got " + std::to_string(value));
        }
        return value;
    }

    template <class T>
    T* pointer(Py_ssize_t i, bool may_be_null) const {
        const std::uintptr_t value = static_cast<std::uintptr_t>(PyLong_AsUnsignedLongLong((*this)[i].ptr()));
        if (PyErr_Occurred() != nullptr) {
            throw py::error_already_set();
        }
        if (value == 0 && !may_be_null) {
            refuse(std::string(what_) + ": expected the address of a tensor with elements, got 0");
        }
        return reinterpret_cast<T*>(value);
    }

    DType dtype(Py_ssize_t i) const {
        const std::int64_t value = integer(i);
        if (value < 0 || value > static_cast<std::int64_t>(DType::f64)) {
            refuse(std::string(what_) + ": expected one of F32, F16, BF16, F64, got " + std::to_string(value));
        }
        return static_cast<DType>(value);
    }

    const char* what() const { return what_; }

  private:
    const char* what_;
    py::object items_;
};

// (address, dtype, rows, cols, row stride, column stride)
inline MatrixView matrix(py::handle object, const char* what) {
    const Fields fields(object, what, 6);
    MatrixView view;
    view.dtype = fields.dtype(1);
    view.rows = fields.size_at(2);
    view.cols = fields.size_at(3);
    view.row_stride = fields.integer(4);
    view.col_stride = fields.integer(5);
    view.data = fields.pointer<const void>(0, view.rows == 0 || view.cols == 0);
    return view;
}

// (address, size, stride), or None for an absent one. Every value must lie in [0, limit].
inline IndexView index(py::handle object, const char* what, std::int64_t limit) {
    if (object.is_none()) {
        return {};
    }
    const Fields fields(object, what, 3);
    IndexView view;
    view.size = fields.size_at(1);
    view.stride = fields.integer(2);
    view.data = fields.pointer<const std::int64_t>(0, view.size == 0);
    for (std::int64_t i = 0; i < view.size; ++i) {
        const std::int64_t value = view.data[i * view.stride];
        if (value < 0 || value > limit) {
            refuse(std::string(what) + ": expected values from 0 to " + std::to_string(limit) + ", got " +
                   std::to_string(value) + " at position " + std::to_string(i));
        }
    }
    return view;
}

inline void expect_equal(std::int64_t got, std::int64_t expected, const char* what) {
    if (got != expected) {
        refuse(std::string(what) + ": expected " + std::to_string(expected) + ", got " + std::to_string(got));
    }
}

inline void expect_kernel_size(int kernel_size, int largest) {
    if (kernel_size < 1 || kernel_size > largest || kernel_size % 2 == 0) {
        refuse("kernel_size: expected an odd number from 1 to " + std::to_string(largest) + ", got " +
               std::to_string(kernel_size));
    }
}

inline void expect_threads(int threads) {
    if (threads < 1) {
        refuse("threads: expected at least 1, got " + std::to_string(threads));
    }
}

// One params struct for every item of a list.
template <class Params, class Read>
std::vector<Params> read_items(py::handle list, const char* what, const Read& read) {
    const Fields items(list, what, -1);
    std::vector<Params> params;
    params.reserve(static_cast<std::size_t>(items.size()));
    for (Py_ssize_t i = 0; i < items.size(); ++i) {
        params.push_back(read(items[i]));
    }
    return params;
}

}  // namespace tam::bindings
