// What the objects in a heap have in common: a kind, a header with a checksum, and a name by which they are
// opened.
#pragma once

#include "checksum.hpp"
#include "heap.hpp"

namespace bequest {

// What a root is of. Memory is the user's own.
enum class ObjectKind : uint64_t { kMap = 1, kLog = 2, kQueue = 3, kStruct = 4, kArray = 5, kMemory = 100 };
const char* name_of(uint64_t kind);

// What users may say that a value is. Packed: in an encoding that this code does not know.
enum class ValueType : uint8_t { kInt, kFloat, kBool, kBytes, kText, kPacked };
const char* name_of(ValueType type);

// At the beginning of each. What follows it changes, and has checks of its own.
struct ObjectHeader {
    uint64_t kind;
    uint64_t seed;  // as the object pleases; never changes
    uint64_t crc;   // of both

    static ObjectHeader make(ObjectKind kind, uint64_t seed);
    void check(ObjectKind kind, uint64_t address) const;  // throws CorruptHeap
};

uint64_t require_kind(const Root& root, ObjectKind kind);  // its address; throws HeapMisuse

// Where the object of this name lies: it is made if there is none.
template <class Make>
uint64_t find_or_make(Heap& heap, std::string_view name, ObjectKind kind, Make make) {
    if (const auto root = heap.find_root(name)) return require_kind(*root, kind);
    Transaction transaction(heap);
    const uint64_t address = make(heap);
    heap.set_root(name, address, static_cast<uint64_t>(kind));
    transaction.commit();
    return address;
}

}  // namespace bequest
