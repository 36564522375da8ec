// bequest._core.MapBase and ChainBase: the objects in a heap, at native speed.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "values.hpp"

namespace bequest {

namespace {

// A map and what its keys and values are.
class MapBase : public InHeap<Map> {
public:
    MapBase(nb::handle heap, const std::string& name, Map map, Codec keys, Codec values)
        : InHeap<Map>(heap, name, std::move(map)), keys(std::move(keys)), values(std::move(values)) {}
    const Codec keys, values;
};

// A chain and what its records are.
class ChainBase : public InHeap<RecordChain> {
public:
    ChainBase(nb::handle heap, const std::string& name, RecordChain chain, Codec records)
        : InHeap<RecordChain>(heap, name, std::move(chain)), records(std::move(records)) {}
    const Codec records;
};

// What a type is called by whoever opens an object of it.
const char* argument_for(ValueType type) { return type == ValueType::kPacked ? "its type" : name_of(type); }

MapBase& map_of(PyObject* self) { return instance_of<MapBase>(self); }

PyObject* get_item(PyObject* self, PyObject* key) {
    return guarded<PyObject*>(nullptr, [&]() -> PyObject* {
        MapBase& map = map_of(self);
        const Encoded encoded(map.keys, key);
        if (const auto value = map.usable().get(encoded.view())) return map.values.decode(*value);
        PyErr_SetObject(PyExc_KeyError, key);
        return nullptr;
    });
}

// What Python code packs may use the heap meanwhile: so the map is asked for last.
int set_item(PyObject* self, PyObject* key, PyObject* value) {
    return guarded(-1, [&] {
        MapBase& map = map_of(self);
        const Encoded encoded(map.keys, key);
        if (value) {
            const Encoded encoded_value(map.values, value);
            map.usable().put(encoded.view(), encoded_value.view());
        } else if (!map.usable().erase(encoded.view())) {
            PyErr_SetObject(PyExc_KeyError, key);
            return -1;
        }
        return 0;
    });
}

Py_ssize_t length(PyObject* self) {
    return guarded<Py_ssize_t>(-1, [&] { return static_cast<Py_ssize_t>(map_of(self).usable().size()); });
}

int contains(PyObject* self, PyObject* key) {
    return guarded(-1, [&] {
        MapBase& map = map_of(self);
        const Encoded encoded(map.keys, key);
        return map.usable().get(encoded.view()).has_value() ? 1 : 0;
    });
}

PyType_Slot map_slots[] = {
    {Py_mp_subscript, reinterpret_cast<void*>(get_item)},
    {Py_mp_ass_subscript, reinterpret_cast<void*>(set_item)},
    {Py_mp_length, reinterpret_cast<void*>(length)},
    {Py_sq_contains, reinterpret_cast<void*>(contains)},
    {0, nullptr},
};

nb::object get_or(MapBase& map, nb::handle key, nb::object otherwise) {
    const Encoded encoded(map.keys, key.ptr());
    const auto value = map.usable().get(encoded.view());
    if (!value) return otherwise;
    return nb::steal(map.values.decode(*value));
}

struct MapIterator {
    nb::object map;
    Map::Cursor cursor;
    int what;  // 0: keys, 1: values, 2: both
};

nb::object next_of(MapIterator& self) {
    MapBase& map = *nb::inst_ptr<MapBase>(self.map);
    map.usable();
    if (self.cursor.is_stale()) raise_error("RuntimeError", "the Map got or lost keys during iteration");
    const MapEntry* entry = self.cursor.next();
    if (!entry) throw nb::stop_iteration();
    if (self.what == 0) return nb::steal(map.keys.decode(entry->key()));
    // Unpacking runs Python code, which may remove the entry: its key comes first.
    nb::object key = self.what == 2 ? nb::steal(map.keys.decode(entry->key())) : nb::object();
    nb::object value = nb::steal(map.values.decode(entry->value()));
    if (self.what == 1) return value;
    return nb::make_tuple(key, value);
}

nb::tuple pop_any(MapBase& map) {
    const MapEntry* entry = map.usable().any();
    if (!entry) raise_error("KeyError", "popitem(): the Map is empty");
    const std::string key(entry->key());  // unpacking runs Python code, which may change the map
    nb::object value = nb::steal(map.values.decode(entry->value()));
    map.usable().erase(key);
    return nb::make_tuple(nb::steal(map.keys.decode(key)), value);
}

nb::tuple scan(MapBase& map, uint64_t position, uint64_t count) {
    nb::list keys;
    const Map& native = map.usable();
    const uint64_t next = native.scan(position, count, [&](const MapEntry& entry) {
        keys.append(nb::steal(map.keys.decode(entry.key())));
    });
    return nb::make_tuple(next, keys);
}

Codec codec_of(const char* part, const std::string& name, nb::tuple said) {
    return {static_cast<ValueType>(nb::cast<uint8_t>(said[0])), std::string(part) + " of '" + name + "'",
            said[1], said[2]};
}

void require_face(const Map& map, const std::string& name, const MapFace& wanted) {
    const MapFace face = map.face();
    if (face == wanted) return;
    const char *key = name_of(face.key), *value = name_of(face.value);
    raise<HeapMisuse>(
        "'%s' maps %s to %s in this heap, not %s to %s: open it as Map(heap, '%s', key=%s, value=%s)",
        name.c_str(), key, value, name_of(wanted.key), name_of(wanted.value), name.c_str(), key,
        argument_for(face.value));
}

void open_map(MapBase* self, nb::handle heap, nb::handle said, nb::tuple keys, nb::tuple values) {
    const std::string name = root_name(said);
    const Codec key = codec_of("a key", name, keys), value = codec_of("a value", name, values);
    const MapFace face{key.type, value.type};
    Map map(heap_of(heap).usable(), name, face);
    require_face(map, name, face);
    new (self) MapBase(heap, name, map, key, value);
}

void bind_map(nb::module_& m) {
    using namespace nb::literals;
    nb::class_<MapIterator>(m, "MapIterator")
        .def("__iter__", [](nb::handle_t<MapIterator> self) { return nb::borrow(self); })
        .def("__next__", &next_of);
    nb::class_<MapBase>(m, "MapBase", nb::type_slots(map_slots), "A dictionary in a heap.")
        .def("__init__", &open_map, "heap"_a.none(), "name"_a.none(), "keys"_a, "values"_a)
        .def_prop_ro("heap", [](MapBase& self) { return self.heap(); })
        .def_prop_ro("name", &name_of_made<MapBase>)
        .def("transaction", [](MapBase& self) { return self.transaction(); })
        .def("get", &get_or, "key"_a.none(), "default"_a = nb::none())
        .def(
            "_iterate",
            [](nb::handle_t<MapBase> self, int what) {
                return MapIterator{nb::borrow(self), Map::Cursor(map_of(self.ptr()).usable()), what};
            },
            "what"_a, nb::keep_alive<0, 1>())
        .def("popitem", &pop_any)
        .def("_scan", &scan, "position"_a, "count"_a)
        .def("clear", [](MapBase& self) { self.usable().clear(); });
}

// --- chains -----------------------------------------------------------------------------------------

uint64_t append(ChainBase& chain, nb::handle record) {
    const Encoded encoded(chain.records, record.ptr());
    return chain.usable().append(encoded.view());
}

// From a tuple, made of whatever was given: it holds the records while they are written.
uint64_t append_all(ChainBase& chain, nb::handle records) {
    const nb::object sequence = nb::steal(PySequence_Tuple(records.ptr()));
    if (!sequence.is_valid()) throw nb::python_error();
    const Py_ssize_t count = PyTuple_GET_SIZE(sequence.ptr());
    std::vector<std::unique_ptr<Encoded>> held;  // of those that are no plain bytes
    std::vector<std::string_view> views;
    views.reserve(static_cast<size_t>(count));
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject* record = PyTuple_GET_ITEM(sequence.ptr(), i);
        if (chain.records.type == ValueType::kBytes && PyBytes_CheckExact(record)) {
            views.push_back({PyBytes_AS_STRING(record), static_cast<size_t>(PyBytes_GET_SIZE(record))});
        } else {
            held.push_back(std::make_unique<Encoded>(chain.records, record));
            views.push_back(held.back()->view());
        }
    }
    return chain.usable().append(views);
}

// As many as there are before one that is damaged: whoever begins with that is told. Unpacking runs Python
// code, which may change the chain: so all bytes come first.
nb::list read(ChainBase& chain, uint64_t index, uint64_t at_most) {
    nb::list records;
    RecordChain::Cursor cursor(chain.usable(), index);
    try {
        for (; at_most > 0; at_most--) {
            const auto record = cursor.next();
            if (!record) break;
            records.append(to_python(*record));
        }
    } catch (const CorruptHeap&) {
        if (records.size() == 0) throw;
    }
    if (chain.records.type == ValueType::kBytes) return records;
    for (size_t i = 0; i < records.size(); i++) {
        const nb::bytes bytes = nb::borrow<nb::bytes>(records[i]);
        records[i] = nb::steal(chain.records.decode({bytes.c_str(), bytes.size()}));
    }
    return records;
}

nb::list take(ChainBase& chain, uint64_t at_most) {
    const uint64_t first = chain.usable().first_index(), wanted = std::min(at_most, chain.usable().size());
    nb::list records = read(chain, first, wanted);
    if (records.size() < wanted) read(chain, first + records.size(), 1);  // says what is damaged
    if (wanted > 0) chain.usable().drop_before(first + wanted);
    return records;
}

void open_chain(ChainBase* self, nb::handle heap, nb::handle said, bool is_queue, nb::tuple records) {
    const std::string name = root_name(said);
    const Codec codec = codec_of("a record", name, records);
    const ObjectKind kind = is_queue ? ObjectKind::kQueue : ObjectKind::kLog;
    RecordChain chain(heap_of(heap).usable(), name, kind, codec.type);
    const ValueType there = chain.records();
    if (there != codec.type)
        raise<HeapMisuse>("'%s' is a %s of %s in this heap, not of %s: open it as %s(heap, '%s', value=%s)",
                          name.c_str(), name_of(static_cast<uint64_t>(kind)), name_of(there),
                          name_of(codec.type), name_of(static_cast<uint64_t>(kind)), name.c_str(),
                          argument_for(there));
    new (self) ChainBase(heap, name, chain, codec);
}

void bind_chain(nb::module_& m) {
    using namespace nb::literals;
    nb::class_<ChainBase>(m, "ChainBase", "Checksummed records in a heap, added behind and dropped in front.")
        .def("__init__", &open_chain, "heap"_a.none(), "name"_a.none(), "queue"_a, "records"_a)
        .def_prop_ro("heap", &ChainBase::heap)
        .def_prop_ro("name", &name_of_made<ChainBase>)
        .def("transaction", &ChainBase::transaction)
        .def_prop_ro("_first", [](ChainBase& self) { return self.usable().first_index(); })
        .def_prop_ro("_end", [](ChainBase& self) { return self.usable().end_index(); })
        .def("__len__", [](ChainBase& self) { return self.usable().size(); })
        .def("_append", &append, "record"_a.none())
        .def("_extend", &append_all, "records"_a.none())
        .def("_read", &read, "index"_a, "at_most"_a)
        .def("_take", &take, "at_most"_a)
        .def(
            "_drop_before", [](ChainBase& self, uint64_t index) { return self.usable().drop_before(index); },
            "index"_a);
}

}  // namespace

void bind_objects(nb::module_& m) {
    bind_map(m);
    bind_chain(m);
}

}  // namespace bequest
