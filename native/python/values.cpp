#include "values.hpp"

#include <bit>

namespace bequest {

namespace {

[[noreturn]] void raise_type(const std::string& what, const char* wanted, PyObject* value) {
    raise_error("TypeError", "%s is %s, not a %s", what.c_str(), wanted, Py_TYPE(value)->tp_name);
}

uint64_t word_of_int(PyObject* value, const std::string& what) {
    const nb::object number = nb::steal(PyNumber_Index(value));
    if (!number.is_valid()) {
        PyErr_Clear();
        raise_type(what, "an int", value);
    }
    int overflow = 0;
    const long long result = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
    if (overflow != 0)
        raise_error("OverflowError", "%s is an int of 64 bits: it cannot be so large", what.c_str());
    if (result == -1 && PyErr_Occurred()) throw nb::python_error();
    return std::bit_cast<uint64_t>(static_cast<int64_t>(result));
}

uint64_t word_of_float(PyObject* value, const std::string& what) {
    const double number = PyFloat_AsDouble(value);
    if (number == -1.0 && PyErr_Occurred()) {
        const bool is_too_large = PyErr_ExceptionMatches(PyExc_OverflowError);
        PyErr_Clear();
        if (is_too_large) raise_error("OverflowError", "%s is a float: it cannot be so large", what.c_str());
        raise_type(what, "a float", value);
    }
    return std::bit_cast<uint64_t>(number);
}

nb::object packed(const Codec& codec, PyObject* value) {
    nb::object bytes = codec.pack(nb::handle(value));
    if (!PyBytes_CheckExact(bytes.ptr())) raise_type(codec.what, "packed as bytes", bytes.ptr());
    return bytes;
}

PyObject* unpacked(const Codec& codec, std::string_view bytes) {
    try {
        return codec.unpack(to_python(bytes)).release().ptr();
    } catch (nb::python_error& trouble) {
        const nb::object errors = nb::module_::import_("bequest.errors");
        nb::raise_from(trouble, nb::object(errors.attr("HeapMisuse")).ptr(),
                       "%s cannot be read as what it is said to be: was it put there by another version of "
                       "its class?",
                       codec.what.c_str());
    }
}

}  // namespace

uint64_t word_of(ValueType type, PyObject* value, const std::string& what) {
    if (type == ValueType::kInt) return word_of_int(value, what);
    if (type == ValueType::kFloat) return word_of_float(value, what);
    if (!PyBool_Check(value)) raise_type(what, "a bool", value);
    return value == Py_True ? 1 : 0;
}

PyObject* number_of(ValueType type, uint64_t word) {
    if (type == ValueType::kInt) return PyLong_FromLongLong(std::bit_cast<int64_t>(word));
    if (type == ValueType::kFloat) return PyFloat_FromDouble(std::bit_cast<double>(word));
    return PyBool_FromLong(word != 0);
}

std::string_view text_of(PyObject* value, const std::string& what) {
    if (!PyUnicode_Check(value)) raise_type(what, "a str", value);
    Py_ssize_t nbytes = 0;
    const char* text = PyUnicode_AsUTF8AndSize(value, &nbytes);
    if (!text) throw nb::python_error();
    return {text, static_cast<size_t>(nbytes)};
}

PyObject* text_from(std::string_view text, const std::string& what) {
    PyObject* result = PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), nullptr);
    if (result) return result;
    PyErr_Clear();
    raise<CorruptHeap>("%s is no text: its bytes are damaged", what.c_str());
}

Encoded::Encoded(const Codec& codec, PyObject* value) {
    switch (codec.type) {
    case ValueType::kBytes:
        bytes_.emplace(value);
        view_ = bytes_->view();
        return;
    case ValueType::kText:
        view_ = text_of(value, codec.what);
        return;
    case ValueType::kPacked:
        packed_ = packed(codec, value);
        view_ = {PyBytes_AS_STRING(packed_.ptr()), static_cast<size_t>(PyBytes_GET_SIZE(packed_.ptr()))};
        return;
    default:
        word_ = word_of(codec.type, value, codec.what);
        view_ = {reinterpret_cast<const char*>(&word_), sizeof word_};
    }
}

PyObject* Codec::decode(std::string_view bytes) const {
    switch (type) {
    case ValueType::kBytes:
        return PyBytes_FromStringAndSize(bytes.data(), static_cast<Py_ssize_t>(bytes.size()));
    case ValueType::kText:
        return text_from(bytes, what);
    case ValueType::kPacked:
        return unpacked(*this, bytes);
    default:
        uint64_t word = 0;
        if (bytes.size() != sizeof word) raise<CorruptHeap>("%s has a damaged length", what.c_str());
        std::memcpy(&word, bytes.data(), sizeof word);
        return number_of(type, word);
    }
}

}  // namespace bequest
