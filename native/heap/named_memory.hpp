// Memory of the user's own, under a name: of which the heap knows how long it is, and nothing else.
#pragma once

#include <optional>

#include "object.hpp"

namespace bequest {

struct MemoryHeader {     // then the bytes
    ObjectHeader object;  // its seed: how many they are
    uint64_t reserved;
};

// Where the bytes of this name are; throws HeapMisuse if it is something else's.
std::optional<HeapMemory> find_memory(const Heap& heap, std::string_view name);
// So many, of which nothing is said; within a transaction, whose commit makes durable what is in them by
// then.
HeapMemory make_memory(Heap& heap, std::string_view name, uint64_t nbytes);

}  // namespace bequest
