// What may be wrong with a heap, or with what is asked of it.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <stdexcept>
#include <string>

namespace bequest {

// What lies there contradicts itself: something else has written there, or the memory has gone bad.
struct CorruptHeap : std::runtime_error {
    using std::runtime_error::runtime_error;
};
// A heap that another version of this library has written.
struct ForeignHeap : std::runtime_error {
    using std::runtime_error::runtime_error;
};
// No room, and no more to be had.
struct HeapFull : std::runtime_error {
    using std::runtime_error::runtime_error;
};
// A mistake of the caller: an address that is no allocation's, a commit without a transaction, a name too
// long.
struct HeapMisuse : std::logic_error {
    using std::logic_error::logic_error;
};

template <class Error>
[[noreturn]] __attribute__((format(printf, 1, 2))) void raise(const char* format, ...) {
    char text[300];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    throw Error(text);
}

}  // namespace bequest
