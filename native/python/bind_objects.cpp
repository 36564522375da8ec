// bequest._core.MapBase and ChainBase: the objects in a heap, at native speed.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "heap_handle.hpp"

namespace bequest {

namespace {

// Every use asks the heap first: whether it is open, and its memory ours.
template <class Object>
struct InHeap {
    nb::object heap;
    Object object;

    Object& usable() {
        nb::inst_ptr<HeapBase>(heap)->usable();
        return object;
    }
};
using MapBase = InHeap<Map>;
using ChainBase = InHeap<RecordChain>;

Map& map_of(PyObject* self) { return nb::inst_ptr<MapBase>(self)->usable(); }

// For slots, which are called by C: nothing may pass through them but the sign of an error.
template <class Result, class Body>
Result guarded(Result failure, const Body& body) {
    try {
        return body();
    } catch (...) {
        set_python_error(std::current_exception());
        return failure;
    }
}

PyObject* get_item(PyObject* self, PyObject* key) {
    return guarded<PyObject*>(nullptr, [&]() -> PyObject* {
        const Bytes bytes(key);
        const auto value = map_of(self).get(bytes.view());
        if (value) return PyBytes_FromStringAndSize(value->data(), static_cast<Py_ssize_t>(value->size()));
        PyErr_SetObject(PyExc_KeyError, key);
        return nullptr;
    });
}

int set_item(PyObject* self, PyObject* key, PyObject* value) {
    return guarded(-1, [&] {
        const Bytes bytes(key);
        if (value) {
            map_of(self).put(bytes.view(), Bytes(value).view());
        } else if (!map_of(self).erase(bytes.view())) {
            PyErr_SetObject(PyExc_KeyError, key);
            return -1;
        }
        return 0;
    });
}

Py_ssize_t length(PyObject* self) {
    return guarded<Py_ssize_t>(-1, [&] { return static_cast<Py_ssize_t>(map_of(self).size()); });
}

int contains(PyObject* self, PyObject* key) {
    return guarded(-1, [&] { return map_of(self).get(Bytes(key).view()).has_value() ? 1 : 0; });
}

PyType_Slot map_slots[] = {
    {Py_mp_subscript, reinterpret_cast<void*>(get_item)},
    {Py_mp_ass_subscript, reinterpret_cast<void*>(set_item)},
    {Py_mp_length, reinterpret_cast<void*>(length)},
    {Py_sq_contains, reinterpret_cast<void*>(contains)},
    {0, nullptr},
};

nb::object get_or(MapBase& map, nb::handle key, nb::object otherwise) {
    const auto value = map.usable().get(Bytes(key.ptr()).view());
    if (!value) return otherwise;
    return to_python(*value);
}

struct MapIterator {
    nb::object map;
    Map::Cursor cursor;
    int what;  // 0: keys, 1: values, 2: both
};

nb::object next_of(MapIterator& self) {
    nb::inst_ptr<MapBase>(self.map)->usable();
    if (self.cursor.is_stale()) raise_error("RuntimeError", "the Map changed its size during iteration");
    const MapEntry* entry = self.cursor.next();
    if (!entry) throw nb::stop_iteration();
    if (self.what == 0) return to_python(entry->key());
    if (self.what == 1) return to_python(entry->value());
    return nb::make_tuple(to_python(entry->key()), to_python(entry->value()));
}

void bind_map(nb::module_& m) {
    using namespace nb::literals;
    nb::class_<MapIterator>(m, "MapIterator")
        .def("__iter__", [](nb::handle_t<MapIterator> self) { return nb::borrow(self); })
        .def("__next__", &next_of);
    nb::class_<MapBase>(m, "MapBase", nb::type_slots(map_slots), "Bytes to bytes, in a heap.")
        .def(
            "__init__",
            [](MapBase* self, nb::handle_t<HeapBase> heap, const std::string& name) {
                Heap& native = nb::inst_ptr<HeapBase>(heap)->usable();
                new (self) MapBase{nb::borrow(heap), Map(native, name)};
            },
            "heap"_a, "name"_a)
        .def_prop_ro("_heap", [](MapBase& self) { return self.heap; })
        .def("get", &get_or, "key"_a, "default"_a = nb::none())
        .def(
            "_iterate",
            [](nb::handle_t<MapBase> self, int what) {
                return MapIterator{nb::borrow(self), Map::Cursor(nb::inst_ptr<MapBase>(self)->usable()),
                                   what};
            },
            "what"_a, nb::keep_alive<0, 1>())
        .def("clear", [](MapBase& self) { self.usable().clear(); })
        .def("_destroy", [](MapBase& self) { self.usable().destroy(); });
}

// --- chains -----------------------------------------------------------------------------------------

// From a list or tuple, made of whatever was given: it holds the records while they are written.
uint64_t append_all(ChainBase& chain, nb::handle records) {
    const nb::object sequence =
        nb::steal(PySequence_Fast(records.ptr(), "records are given as an iterable of bytes"));
    if (!sequence.is_valid()) throw nb::python_error();
    const Py_ssize_t count = PySequence_Fast_GET_SIZE(sequence.ptr());
    std::vector<std::unique_ptr<Bytes>> held;  // of those that are no plain bytes
    std::vector<std::string_view> views;
    views.reserve(static_cast<size_t>(count));
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject* record = PySequence_Fast_GET_ITEM(sequence.ptr(), i);
        if (PyBytes_CheckExact(record)) {
            views.push_back({PyBytes_AS_STRING(record), static_cast<size_t>(PyBytes_GET_SIZE(record))});
        } else {
            held.push_back(std::make_unique<Bytes>(record));
            views.push_back(held.back()->view());
        }
    }
    return chain.usable().append(views);
}

nb::list read(ChainBase& chain, uint64_t index, uint64_t at_most) {
    nb::list records;
    RecordChain::Cursor cursor(chain.usable(), index);
    for (; at_most > 0; at_most--) {
        const auto record = cursor.next();
        if (!record) break;
        records.append(to_python(*record));
    }
    return records;
}

void bind_chain(nb::module_& m) {
    using namespace nb::literals;
    nb::class_<ChainBase>(m, "ChainBase", "Checksummed records in a heap, added behind and dropped in front.")
        .def(
            "__init__",
            [](ChainBase* self, nb::handle_t<HeapBase> heap, const std::string& name, bool queue) {
                Heap& native = nb::inst_ptr<HeapBase>(heap)->usable();
                const ObjectKind kind = queue ? ObjectKind::kQueue : ObjectKind::kLog;
                new (self) ChainBase{nb::borrow(heap), RecordChain(native, name, kind)};
            },
            "heap"_a, "name"_a, "queue"_a)
        .def_prop_ro("first", [](ChainBase& self) { return self.usable().first_index(); })
        .def_prop_ro("end", [](ChainBase& self) { return self.usable().end_index(); })
        .def("__len__", [](ChainBase& self) { return self.usable().size(); })
        .def(
            "append",
            [](ChainBase& self, nb::handle record) {
                return self.usable().append(Bytes(record.ptr()).view());
            },
            "record"_a)
        .def("extend", &append_all, "records"_a)
        .def("_read", &read, "index"_a, "at_most"_a)
        .def(
            "_drop_before", [](ChainBase& self, uint64_t index) { return self.usable().drop_before(index); },
            "index"_a)
        .def("_destroy", [](ChainBase& self) { self.usable().destroy(); });
}

}  // namespace

void bind_objects(nb::module_& m) {
    bind_map(m);
    bind_chain(m);
}

}  // namespace bequest
