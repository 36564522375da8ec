#include "roles.hpp"

#include "array.hpp"
#include "map.hpp"
#include "named_memory.hpp"
#include "record_chain.hpp"
#include "structure.hpp"

namespace bequest::tests {

namespace {

class Marker {
public:
    explicit Marker(World& world) : heap_(world.heap()), roles_(world.nbytes(), Role::kNothing) {}

    void own(uint64_t address, uint64_t nbytes) { mark(address, nbytes, Role::kOwn); }
    void own(const void* place, uint64_t nbytes) { own(reinterpret_cast<uint64_t>(place), nbytes); }
    void users(const void* place, uint64_t nbytes) {
        mark(reinterpret_cast<uint64_t>(place), nbytes, Role::kUsers);
    }
    template <class T>
    void own(const T& part) {
        own(&part, sizeof part);
    }
    Heap& heap() { return heap_; }
    std::vector<Role> done() { return std::move(roles_); }

private:
    void mark(uint64_t address, uint64_t nbytes, Role role) {
        for (uint64_t i = 0; i < nbytes; i++) roles_.at(address - kArenaAddress + i) = role;
    }

    Heap& heap_;
    std::vector<Role> roles_;
};

// --- the heap itself ----------------------------------------------------------------------------------

const HeapHeader& heap_header() {
    return *reinterpret_cast<const HeapHeader*>(kArenaAddress + kHeapHeaderOffset);
}

void mark_what_decides(Marker& marker) {
    marker.own(kArenaAddress, sizeof(SegmentHeader));
    marker.own(heap_header().phase);
    marker.own(heap_header().hardened);
    marker.own(heap_header().segments_used);
}

void mark_allocator(Marker& marker) {
    const Segment segment(marker.heap().medium(), kArenaAddress, kHeapBytes);
    for (uint64_t chunk = 0; chunk < segment.chunk_count(); chunk += segment.record(chunk).chunks()) {
        marker.own(segment.word(chunk));
        if (segment.record(chunk).kind() == ChunkKind::kRun)
            marker.own(segment.bitmap(chunk), segment.shape(segment.record(chunk)).words() * 8);
    }
}

void mark_log(Marker& marker) {
    const auto& segment = *reinterpret_cast<const SegmentHeader*>(kArenaAddress);
    const uint64_t serial = Phase{heap_header().phase}.serial();
    for (uint64_t place = kArenaAddress + segment.log_offset;;) {
        const auto& entry = *reinterpret_cast<const LogEntry*>(place);
        if (entry.tag >> 2 != serial) return;
        marker.own(place, sizeof entry + entry.nbytes);
        place += sizeof entry + rounded_up(entry.nbytes, 8);
    }
}

// --- objects ------------------------------------------------------------------------------------------

void mark_line(Marker& marker, const MapLine& line) {
    marker.own(line);
    for (const uint64_t slot : line.slots) {
        if (slot == 0) continue;
        const auto& entry = marker.heap().at<MapEntry>(Reference{slot}.address());
        marker.own(entry);
        marker.own(entry.key().data(), entry.key().size());
        marker.users(entry.value().data(), entry.value().size());
    }
    if (line.next != 0) mark_line(marker, marker.heap().at<MapLine>(Reference{line.next}.address()));
}

void mark_map(Marker& marker, uint64_t address) {
    const auto& header = marker.heap().at<MapHeader>(address);
    marker.own(header.object);
    marker.own(header.count);
    marker.own(header.buckets);
    const uint64_t buckets = header.buckets & kCheckedMask;
    for (uint64_t table = 0, first = 0; first < buckets; table++) {
        marker.own(header.tables[table]);
        const uint64_t size = table == 0 ? kFirstBuckets : first;
        const auto* lines = &marker.heap().at<MapLine>(Reference{header.tables[table]}.address());
        for (uint64_t i = 0; i < size && first + i < buckets; i++) mark_line(marker, lines[i]);
        first += size;
    }
}

void mark_chain(Marker& marker, const Root& root) {
    const RecordChain chain(marker.heap(), root.name, static_cast<ObjectKind>(root.kind));
    marker.own(root.address, sizeof(ChainHeader));
    chain.for_each_block([&](uint64_t block) {
        if (block != root.address) marker.own(block, sizeof(ChainBlock));
    });
    RecordChain::Cursor cursor(chain, 0);
    while (const auto record = cursor.next())
        marker.own(record->data() - sizeof(ChainRecord), sizeof(ChainRecord) + record->size());
}

void mark_struct(Marker& marker, uint64_t address) {
    const StructLayout layout = Struct::layout_of(marker.heap(), address);
    const Struct object(marker.heap(), address, layout);
    marker.own(address, sizeof(ObjectHeader) + layout.text.size());
    const auto* words =
        reinterpret_cast<const uint64_t*>(address + sizeof(ObjectHeader) + rounded_up(layout.text.size(), 8));
    for (uint64_t field = 0; field < layout.types.size(); field++) {
        if (layout.types[field] < ValueType::kBytes) {
            marker.users(&words[field], 8);
            continue;
        }
        marker.own(words[field]);
        const std::string_view text = object.bytes(field);
        if (text.empty()) continue;
        marker.own(text.data() - 8, 8);
        marker.users(text.data(), text.size());
    }
}

void mark_array(Marker& marker, uint64_t address) {
    const Array array(marker.heap(), address);
    marker.own(address, sizeof(ArrayHeader) + array.text().size());
    if (!array.data()) return;
    marker.own(reinterpret_cast<const ArrayBlock*>(array.data() - sizeof(ArrayBlock))->nbytes);
    marker.users(array.data(), array.nbytes());
}

void mark_root(Marker& marker, const Root& root) {
    marker.own(root.record, sizeof(RootRecord) + root.name.size());
    switch (root.kind) {
    case static_cast<uint64_t>(ObjectKind::kMap):
        return mark_map(marker, root.address);
    case static_cast<uint64_t>(ObjectKind::kLog):
    case static_cast<uint64_t>(ObjectKind::kQueue):
        return mark_chain(marker, root);
    case static_cast<uint64_t>(ObjectKind::kStruct):
        return mark_struct(marker, root.address);
    case static_cast<uint64_t>(ObjectKind::kArray):
        return mark_array(marker, root.address);
    case static_cast<uint64_t>(ObjectKind::kMemory): {
        const HeapMemory memory = *find_memory(marker.heap(), root.name);
        marker.own(root.address, sizeof(ObjectHeader));
        return marker.users(reinterpret_cast<const void*>(memory.address), memory.nbytes);
    }
    case kCells:
        return marker.users(reinterpret_cast<const void*>(root.address),
                            cells_in(marker.heap().nbytes_of(root.address)) * 8);
    }
}

}  // namespace

std::vector<Role> roles_at_rest(World& world) {
    Marker marker(world);
    mark_what_decides(marker);
    marker.own(heap_header().roots);
    marker.own(heap_header().root_count);
    mark_allocator(marker);
    for (const Root& root : world.heap().roots()) mark_root(marker, root);
    return marker.done();
}

std::vector<Role> roles_of_recovery(World& world) {
    Marker marker(world);
    mark_what_decides(marker);
    mark_log(marker);
    return marker.done();
}

}  // namespace bequest::tests
