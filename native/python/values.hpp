// Between Python's values and what lies in a heap: numbers are words, text is UTF-8, and what is packed is
// made and read by functions of Python's.
#pragma once

#include <optional>
#include <string>

#include "../heap/object.hpp"
#include "heap_handle.hpp"

namespace bequest {

// `what` is what a message calls the value: "Counter.count". They raise TypeError and OverflowError.
uint64_t word_of(ValueType type, PyObject* value, const std::string& what);
std::string_view text_of(PyObject* value, const std::string& what);
PyObject* number_of(ValueType type, uint64_t word);
PyObject* text_from(std::string_view text, const std::string& what);

// The keys, or the values, of a map.
struct Codec {
    ValueType type;
    std::string what;
    nb::object pack, unpack;

    PyObject* decode(std::string_view bytes) const;
};

// The bytes of a value, for as long as this lives.
class Encoded {
public:
    Encoded(const Codec& codec, PyObject* value);
    Encoded(const Encoded&) = delete;
    std::string_view view() const { return view_; }

private:
    std::optional<Bytes> bytes_;
    nb::object packed_;
    uint64_t word_ = 0;
    std::string_view view_;
};

}  // namespace bequest
