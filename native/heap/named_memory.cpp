#include "named_memory.hpp"

namespace bequest {

std::optional<HeapMemory> find_memory(const Heap& heap, std::string_view name) {
    const auto root = heap.find_root(name);
    if (!root) return std::nullopt;
    const uint64_t address = require_kind(*root, ObjectKind::kMemory);
    const auto& header = heap.at<MemoryHeader>(address);
    header.object.check(ObjectKind::kMemory, address);
    const HeapMemory memory{address + sizeof header, header.object.seed};
    heap.require(memory.address, memory.nbytes);
    return memory;
}

HeapMemory make_memory(Heap& heap, std::string_view name, uint64_t nbytes) {
    if (nbytes > kHeapBytesMax) raise<HeapFull>("no heap has %lu bytes in one piece", nbytes);
    const uint64_t address = heap.alloc(sizeof(MemoryHeader) + nbytes);
    const MemoryHeader header{ObjectHeader::make(ObjectKind::kMemory, nbytes), 0};
    heap.medium().copy(reinterpret_cast<void*>(address), &header, sizeof header);
    heap.set_root(name, address, static_cast<uint64_t>(ObjectKind::kMemory));
    return {address + sizeof header, nbytes};
}

}  // namespace bequest
