#include "world.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "array.hpp"
#include "map.hpp"
#include "named_memory.hpp"
#include "record_chain.hpp"
#include "structure.hpp"

namespace bequest::tests {

namespace {

void add_map(Heap& heap, const Root& root, std::string& text, std::vector<uint64_t>& reached) {
    const Map map(heap, root.address);
    map.for_each_block([&](uint64_t block) { reached.push_back(block); });
    std::vector<std::string> entries;
    Map::Cursor cursor(map);
    while (const MapEntry* entry = cursor.next()) {
        const auto found = map.get(entry->key());
        if (!found || found->data() != entry->value().data()) throw Contradiction("a key is not found");
        entries.push_back(std::string(entry->key()) + "=" + std::string(entry->value()));
    }
    std::sort(entries.begin(), entries.end());
    for (const std::string& entry : entries) text += entry + ",";
    if (entries.size() != map.size()) throw Contradiction("a map's count is wrong");
}

void add_chain(Heap& heap, const Root& root, std::string& text, std::vector<uint64_t>& reached) {
    const RecordChain chain(heap, root.name, static_cast<ObjectKind>(root.kind));
    chain.for_each_block([&](uint64_t block) { reached.push_back(block); });
    text += std::to_string(chain.first_index()) + ":";
    RecordChain::Cursor cursor(chain, 0);
    uint64_t count = 0;
    for (; const auto record = cursor.next(); count++) text += std::string(*record) + ",";
    if (count != chain.size()) throw Contradiction("a chain's size is wrong");
}

void add_struct(Heap& heap, const Root& root, std::string& text, std::vector<uint64_t>& reached) {
    const Struct object(heap, root.address, Struct::layout_of(heap, root.address));
    object.for_each_block([&](uint64_t block) { reached.push_back(block); });
    for (uint64_t field = 0; field < object.types().size(); field++) {
        if (object.types()[field] >= ValueType::kBytes)
            text += std::string(object.bytes(field)) + ",";
        else
            text += std::to_string(object.word(field)) + ",";
    }
}

void add_array(Heap& heap, const Root& root, std::string& text, std::vector<uint64_t>& reached) {
    const Array array(heap, root.address);
    array.for_each_block([&](uint64_t block) { reached.push_back(block); });
    text += std::string(array.text()) + ":";
    for (uint64_t i = 0; i < array.nbytes(); i++) text += std::to_string(array.data()[i]) + ",";
}

}  // namespace

World::World() {
    void* place = mmap(reinterpret_cast<void*>(kArenaAddress), kArenaBytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (place != reinterpret_cast<void*>(kArenaAddress)) raise<HeapMisuse>("the arena's addresses are taken");
    memory_ = static_cast<unsigned char*>(place);
}

World::~World() {
    close();
    munmap(memory_, kArenaBytes);
}

void World::clear(unsigned char filling) {
    close();
    std::memset(memory_, filling, kArenaBytes);
}

HeapOptions World::options() {
    HeapOptions options;
    options.backing = Medium::Backing::kFile;
    options.grow = [this](uint64_t least, uint64_t) -> std::optional<HeapMemory> {
        const uint64_t used = heap_ ? heap_->nbytes() : kHeapBytes;
        if (!may_grow || used + kSupplyBytes > kArenaBytes || least > kSupplyBytes + (32 << 10))
            return std::nullopt;
        return HeapMemory{kArenaAddress + used, kSupplyBytes};
    };
    options.is_ours = [](const HeapMemory& memory) {
        return memory.address >= kArenaAddress + kHeapBytes && memory.nbytes <= kArenaBytes &&
               memory.address - kArenaAddress <= kArenaBytes - memory.nbytes;
    };
    return options;
}

void World::create() { heap_ = Heap::create({kArenaAddress, kHeapBytes}, kHeapId, options()); }
void World::open() { heap_ = Heap::open({kArenaAddress, kHeapBytes}, options()); }

std::string World::contents() {
    if (!heap_) return "no heap";
    std::string text;
    std::vector<uint64_t> reached, allocated;
    for (const Root& root : heap_->roots()) {
        reached.push_back(root.record);
        text += root.name + "(";
        if (root.kind == static_cast<uint64_t>(ObjectKind::kMap)) {
            add_map(*heap_, root, text, reached);
        } else if (root.kind == static_cast<uint64_t>(ObjectKind::kStruct)) {
            add_struct(*heap_, root, text, reached);
        } else if (root.kind == static_cast<uint64_t>(ObjectKind::kArray)) {
            add_array(*heap_, root, text, reached);
        } else if (root.kind == static_cast<uint64_t>(ObjectKind::kMemory)) {
            reached.push_back(root.address);
            const HeapMemory memory = *find_memory(*heap_, root.name);
            text.append(reinterpret_cast<const char*>(memory.address), memory.nbytes);
        } else if (root.kind == kCells) {
            reached.push_back(root.address);
            const uint64_t* cell = &heap_->at<uint64_t>(root.address, heap_->nbytes_of(root.address));
            for (uint64_t i = 0; i < cells_in(heap_->nbytes_of(root.address)); i++)
                text += std::to_string(cell[i]) + ",";
        } else if (root.kind == kReference) {
            reached.push_back(root.address);
            reached.push_back(heap_->at<uint64_t>(root.address));
            text += std::to_string(heap_->at<uint64_t>(reached.back()));
        } else {
            add_chain(*heap_, root, text, reached);
        }
        text += ") ";
    }
    heap_->for_each_block([&](const Block& block) { allocated.push_back(block.address); });
    std::sort(reached.begin(), reached.end());
    std::sort(allocated.begin(), allocated.end());
    if (reached != allocated)
        raise<Contradiction>("%zu blocks are allocated and %zu are referred to: %s", allocated.size(),
                             reached.size(), text.c_str());
    return text;
}

uint64_t* World::cells(std::string_view name, uint64_t count) {
    if (const auto root = heap_->find_root(name)) return reinterpret_cast<uint64_t*>(root->address);
    Transaction transaction(*heap_);
    const uint64_t address = heap_->alloc(count * 8);
    for (uint64_t i = 0; i < cells_in(heap_->nbytes_of(address)); i++)
        write(reinterpret_cast<uint64_t*>(address) + i, 0);
    heap_->set_root(name, address, kCells);
    transaction.commit();
    return reinterpret_cast<uint64_t*>(address);
}

void World::write(uint64_t* cell, uint64_t value) { heap_->medium().copy(cell, &value, sizeof value); }

}  // namespace bequest::tests
