#include "removal.hpp"

#include "array.hpp"
#include "map.hpp"
#include "record_chain.hpp"
#include "structure.hpp"

namespace bequest {

namespace {

void destroy(Heap& heap, const Root& root) {
    switch (static_cast<ObjectKind>(root.kind)) {
    case ObjectKind::kMap:
        return Map(heap, root.address).destroy();
    case ObjectKind::kLog:
    case ObjectKind::kQueue:
        return RecordChain(heap, root.name, static_cast<ObjectKind>(root.kind)).destroy();
    case ObjectKind::kStruct:
        return Struct(heap, root.address, Struct::layout_of(heap, root.address)).destroy();
    case ObjectKind::kArray:
        return Array(heap, root.address).destroy();
    case ObjectKind::kMemory:
        return heap.free_own(root.address);
    }
    raise<CorruptHeap>("'%s' is of a kind that is not known", root.name.c_str());
}

}  // namespace

bool remove(Heap& heap, std::string_view name) {
    const auto root = heap.find_root(name);
    if (!root) return false;
    Transaction transaction(heap);
    destroy(heap, *root);
    heap.remove_root(name);
    transaction.commit();
    return true;
}

}  // namespace bequest
