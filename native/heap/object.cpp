#include "object.hpp"

namespace bequest {

const char* name_of(uint64_t kind) {
    switch (static_cast<ObjectKind>(kind)) {
    case ObjectKind::kMap:
        return "Map";
    case ObjectKind::kLog:
        return "Log";
    case ObjectKind::kQueue:
        return "Queue";
    case ObjectKind::kStruct:
        return "Struct";
    case ObjectKind::kArray:
        return "Array";
    case ObjectKind::kMemory:
        return "memory";
    }
    return "something of another kind";
}

const char* name_of(ValueType type) {
    constexpr const char* kNames[] = {"int", "float", "bool", "bytes", "str", "packed"};
    return kNames[static_cast<uint8_t>(type)];
}

ObjectHeader ObjectHeader::make(ObjectKind kind, uint64_t seed) {
    ObjectHeader header{static_cast<uint64_t>(kind), seed, 0};
    header.crc = crc32c(&header, offsetof(ObjectHeader, crc));
    return header;
}

void ObjectHeader::check(ObjectKind kind, uint64_t address) const {
    if (this->kind != static_cast<uint64_t>(kind) || crc != crc32c(this, offsetof(ObjectHeader, crc)))
        raise<CorruptHeap>("the %s at %#lx is damaged", name_of(static_cast<uint64_t>(kind)), address);
}

uint64_t require_kind(const Root& root, ObjectKind kind) {
    if (root.kind != static_cast<uint64_t>(kind))
        raise<HeapMisuse>("'%s' is a %s in this heap, not a %s", root.name.c_str(), name_of(root.kind),
                          name_of(static_cast<uint64_t>(kind)));
    return root.address;
}

}  // namespace bequest
