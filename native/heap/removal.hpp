// Takes things with a name out of a heap, whatever they are.
#pragma once

#include <string_view>

#include "heap.hpp"

namespace bequest {

// The name, and all that it leads to, in one transaction. False if there is no such name.
bool remove(Heap& heap, std::string_view name);

}  // namespace bequest
