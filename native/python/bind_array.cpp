// bequest._core.ArrayBase: rows of equal size in a heap. What they are, Python says and knows.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include "heap_handle.hpp"

namespace bequest {

namespace {

using ArrayBase = InHeap<Array>;

std::optional<std::string> text_of(nb::handle heap, nb::handle name) {
    Heap& native = heap_of(heap).usable();
    const auto root = native.find_root(root_name(name));
    if (!root) return std::nullopt;
    return std::string(Array(native, require_kind(*root, ObjectKind::kArray)).text());
}

// Whole rows, of a buffer that has no others.
void append(ArrayBase& self, nb::handle rows) {
    const Bytes bytes(rows.ptr());
    Array& array = self.usable();
    array.append(bytes.view().data(), bytes.view().size() / array.row_bytes());
}

void write(ArrayBase& self, uint64_t offset, nb::handle buffer) {
    const Bytes bytes(buffer.ptr());
    self.usable().write(offset, bytes.view().data(), bytes.view().size());
}

nb::object view_of(nb::handle_t<ArrayBase> self) {
    ArrayBase& base = instance_of<ArrayBase>(self.ptr());
    const Array& array = base.usable();
    const nb::object heap = base.heap();
    return nb::inst_ptr<HeapBase>(heap)->view(reinterpret_cast<uint64_t>(array.data()), array.nbytes());
}

}  // namespace

void bind_array(nb::module_& m) {
    using namespace nb::literals;
    nb::class_<ArrayBase>(m, "ArrayBase", "Rows of equal size, in a heap.")
        .def(
            "__init__",
            [](ArrayBase* self, nb::handle_t<HeapBase> heap, const std::string& name, const std::string& text,
               uint64_t row_bytes, uint64_t rows) {
                Heap& native = heap_of(heap).usable();
                new (self) ArrayBase(heap, name, Array(native, name, text, row_bytes, rows));
            },
            "heap"_a, "name"_a, "text"_a, "row_bytes"_a, "rows"_a)
        .def_prop_ro("heap", &ArrayBase::heap)
        .def_prop_ro("name", &name_of_made<ArrayBase>)
        .def("transaction", &ArrayBase::transaction)
        .def("__len__", [](ArrayBase& self) { return self.usable().rows(); })
        .def("_view", &view_of)
        .def("_append", &append, "rows"_a)
        .def(
            "_resize", [](ArrayBase& self, uint64_t rows) { self.usable().resize(rows); }, "rows"_a)
        .def("_write", &write, "offset"_a, "bytes"_a)
        .def(
            "_snapshot",
            [](ArrayBase& self, uint64_t offset, uint64_t nbytes) { self.usable().snapshot(offset, nbytes); },
            "offset"_a, "nbytes"_a);
    m.def("array_text", &text_of, "heap"_a.none(), "name"_a.none(),
          "Of the Array of this name, if there is one.");
}

}  // namespace bequest
