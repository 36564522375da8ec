// bequest._core.StructBase and FieldBase: named fields in a heap, read and written by descriptors in C.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include "values.hpp"

namespace bequest {

namespace {

using StructBase = InHeap<Struct>;

struct FieldBase {
    std::string name;  // with its class's, for messages
    uint64_t index;
    ValueType type;
};

PyTypeObject* struct_type = nullptr;

// --- between Python's values and fields ---------------------------------------------------------------

void assign(Struct& object, const FieldBase& field, PyObject* value) {
    if (field.type < ValueType::kBytes)
        object.set_word(field.index, word_of(field.type, value, field.name));
    else if (field.type == ValueType::kBytes)
        object.set_bytes(field.index, Bytes(value).view());
    else
        object.set_bytes(field.index, text_of(value, field.name));
}

PyObject* value_of(const Struct& object, const FieldBase& field) {
    if (field.type < ValueType::kBytes) return number_of(field.type, object.word(field.index));
    const std::string_view bytes = object.bytes(field.index);
    if (field.type == ValueType::kText) return text_from(bytes, field.name);
    return PyBytes_FromStringAndSize(bytes.data(), static_cast<Py_ssize_t>(bytes.size()));
}

// --- the descriptor -----------------------------------------------------------------------------------

const FieldBase& field_of(PyObject* self) { return instance_of<FieldBase>(self); }

// A descriptor can be called with anything, that of another class included.
Struct& owner_of(const FieldBase& field, PyObject* owner) {
    if (!PyObject_TypeCheck(owner, struct_type))
        raise_error("TypeError", "%s is a field of a Struct", field.name.c_str());
    Struct& object = instance_of<StructBase>(owner).usable();
    if (field.index >= object.types().size() || object.types()[field.index] != field.type)
        raise_error("TypeError", "%s is no field of this Struct", field.name.c_str());
    return object;
}

PyObject* get_field(PyObject* self, PyObject* owner, PyObject*) {
    if (!owner || owner == Py_None) {  // of the class
        Py_INCREF(self);
        return self;
    }
    return guarded<PyObject*>(nullptr, [&] {
        const FieldBase& field = field_of(self);
        return value_of(owner_of(field, owner), field);
    });
}

int set_field(PyObject* self, PyObject* owner, PyObject* value) {
    return guarded(-1, [&] {
        const FieldBase& field = field_of(self);
        if (!value) raise_error("AttributeError", "%s cannot be deleted", field.name.c_str());
        assign(owner_of(field, owner), field, value);
        return 0;
    });
}

// What is no field would not be kept: a slip of the pen must not pass for a change.
int set_attribute(PyObject* self, PyObject* name, PyObject* value) {
#if PY_VERSION_HEX >= 0x030D0000
    PyObject* found = _PyType_LookupRef(Py_TYPE(self), name);
    Py_XDECREF(found);
#else
    PyObject* found = _PyType_Lookup(Py_TYPE(self), name);
#endif
    if (found || (PyUnicode_GetLength(name) > 0 && PyUnicode_ReadChar(name, 0) == '_'))
        return PyObject_GenericSetAttr(self, name, value);
    PyErr_Format(
        PyExc_AttributeError,
        "%s has no field %R, and would not keep it; what begins with an underscore is this process's own",
        Py_TYPE(self)->tp_name, name);
    return -1;
}

PyType_Slot field_slots[] = {
    {Py_tp_descr_get, reinterpret_cast<void*>(get_field)},
    {Py_tp_descr_set, reinterpret_cast<void*>(set_field)},
    {0, nullptr},
};
PyType_Slot struct_slots[] = {
    {Py_tp_setattro, reinterpret_cast<void*>(set_attribute)},
    {0, nullptr},
};

// --- making one ---------------------------------------------------------------------------------------

// `fields` are the class's, in order; each of them has a default.
Struct find_or_make(Heap& heap, const std::string& name, const std::string& layout, nb::tuple fields) {
    return Struct(heap, name, StructLayout(layout), [&](Struct& fresh) {
        for (nb::handle field : fields)
            assign(fresh, field_of(field.ptr()), nb::object(field.attr("default")).ptr());
    });
}

std::optional<std::string> layout_of(nb::handle heap, nb::handle name) {
    Heap& native = heap_of(heap).usable();
    const auto root = native.find_root(root_name(name));
    if (!root) return std::nullopt;
    return Struct::layout_of(native, require_kind(*root, ObjectKind::kStruct)).text;
}

}  // namespace

void bind_struct(nb::module_& m) {
    using namespace nb::literals;
    nb::class_<FieldBase>(m, "FieldBase", nb::type_slots(field_slots), "A field of a Struct.")
        .def(
            "__init__",
            [](FieldBase* self, std::string name, uint64_t index, uint8_t type) {
                new (self) FieldBase{std::move(name), index, static_cast<ValueType>(type)};
            },
            "name"_a, "index"_a, "type"_a);
    nb::object type =
        nb::class_<StructBase>(m, "StructBase", nb::type_slots(struct_slots), "Fields in a heap.")
            .def(
                "__init__",
                [](StructBase* self, nb::handle_t<HeapBase> heap, const std::string& name,
                   const std::string& layout, nb::tuple fields) {
                    Heap& native = heap_of(heap).usable();
                    new (self) StructBase(heap, name, find_or_make(native, name, layout, fields));
                },
                "heap"_a, "name"_a, "layout"_a, "fields"_a)
            .def_prop_ro("heap", &StructBase::heap)
            .def("transaction", &StructBase::transaction)
            .def_prop_ro("_name", &name_of_made<StructBase>);
    struct_type = reinterpret_cast<PyTypeObject*>(type.release().ptr());
    m.def("struct_layout", &layout_of, "heap"_a.none(), "name"_a.none(),
          "Of the Struct of this name, if there is one.");
}

}  // namespace bequest
