#include "structure.hpp"

#include <algorithm>

namespace bequest {

namespace {

constexpr ValueType kTypes[] = {ValueType::kInt, ValueType::kFloat, ValueType::kBool, ValueType::kBytes,
                                ValueType::kText};
constexpr uint64_t kLayoutBytesMax = 1 << 20;

struct TextBlock {    // then the bytes
    uint64_t nbytes;  // checked
};

uint64_t words_offset(uint64_t layout_bytes) { return sizeof(ObjectHeader) + rounded_up(layout_bytes, 8); }

std::string_view stored_layout(const Heap& heap, uint64_t address) {
    const auto& object = heap.at<ObjectHeader>(address);
    object.check(ObjectKind::kStruct, address);
    const uint64_t nbytes = object.seed >> 32;
    heap.require(address, words_offset(nbytes));
    return {reinterpret_cast<const char*>(&object + 1), nbytes};
}

}  // namespace

// --- the layout -----------------------------------------------------------------------------------

StructLayout::StructLayout(std::string said) : text(std::move(said)) {
    if (text.size() > kLayoutBytesMax) raise<HeapMisuse>("a Struct's layout has at most 1 MiB of names");
    for (size_t start = 0; start < text.size();) {
        const size_t end = text.find('\n', start), space = text.find(' ', start);
        if (end == std::string::npos || space >= end) raise<HeapMisuse>("this is no layout of a Struct");
        const auto type = std::string_view(text).substr(space + 1, end - space - 1);
        const auto* found = std::find_if(std::begin(kTypes), std::end(kTypes),
                                         [&](ValueType one) { return name_of(one) == type; });
        if (found == std::end(kTypes)) raise<HeapMisuse>("a Struct has no fields of this type");
        types.push_back(*found);
        start = end + 1;
    }
}

uint64_t StructLayout::seed() const { return text.size() << 32 | crc32c(text.data(), text.size()); }

StructLayout Struct::layout_of(const Heap& heap, uint64_t address) {
    const std::string_view text = stored_layout(heap, address);
    if (crc32c(text.data(), text.size()) != static_cast<uint32_t>(heap.at<ObjectHeader>(address).seed))
        raise<CorruptHeap>("the Struct at %#lx has a damaged layout", address);
    return StructLayout(std::string(text));
}

// --- making and opening ---------------------------------------------------------------------------

uint64_t Struct::make(Heap& heap, const StructLayout& layout) {
    const uint64_t first = words_offset(layout.text.size());
    const uint64_t address = heap.alloc(first + layout.types.size() * sizeof(uint64_t));
    const ObjectHeader object = ObjectHeader::make(ObjectKind::kStruct, layout.seed());
    auto* place = reinterpret_cast<char*>(address);
    heap.medium().copy(place, &object, sizeof object);
    heap.medium().copy(place + sizeof object, layout.text.data(), layout.text.size());
    const std::vector<uint64_t> zeroes(layout.types.size());
    heap.medium().copy(place + first, zeroes.data(), zeroes.size() * sizeof(uint64_t));
    return address;
}

Struct::Struct(Heap& heap, std::string_view name, const StructLayout& layout,
               const std::function<void(Struct&)>& begin)
    : Struct(heap,
             find_or_make(heap, name, ObjectKind::kStruct,
                          [&](Heap& h) {
                              const uint64_t address = make(h, layout);
                              Struct fresh(h, address, layout);
                              begin(fresh);
                              return address;
                          }),
             layout) {}

Struct::Struct(Heap& heap, uint64_t address, const StructLayout& layout)
    : heap_(&heap), address_(address), types_(layout.types) {
    heap.at<ObjectHeader>(address).check(ObjectKind::kStruct, address);
    if (heap.at<ObjectHeader>(address).seed != layout.seed())
        raise<CorruptHeap>("the Struct at %#lx has not the layout that it is taken to have", address);
    const uint64_t first = words_offset(layout.text.size());
    words_ = &heap.at<uint64_t>(address + first, types_.size() * sizeof(uint64_t));
}

// --- fields ---------------------------------------------------------------------------------------

void Struct::set_word(uint64_t field, uint64_t value) { heap_->publish(words_[field], value); }

std::string_view Struct::bytes(uint64_t field) const {
    const uint64_t address = heap_->follow(words_[field]);
    if (address == 0) return {};
    const auto& block = heap_->at<TextBlock>(address);
    const uint64_t nbytes = block.nbytes & kCheckedMask;
    if (!is_sound(block.nbytes)) raise<CorruptHeap>("the Struct at %#lx has a damaged field", address_);
    heap_->require(address, sizeof block + nbytes);
    return {reinterpret_cast<const char*>(&block + 1), nbytes};
}

uint64_t Struct::make_text(std::string_view value) const {
    if (value.empty()) return 0;
    const TextBlock block{checked(value.size())};
    const uint64_t address = heap_->alloc(sizeof block + value.size());
    auto* place = reinterpret_cast<char*>(address);
    heap_->medium().copy(place, &block, sizeof block);
    heap_->medium().copy(place + sizeof block, value.data(), value.size());
    return address;
}

void Struct::set_bytes(uint64_t field, std::string_view value) {
    uint64_t& word = words_[field];
    Transaction transaction(*heap_);
    const uint64_t address = make_text(value);
    if (word != 0) heap_->free_own(heap_->follow(word));
    heap_->set({{&word, Reference::make(address).bits}});
    transaction.commit();
}

void Struct::for_each_block(const std::function<void(uint64_t)>& visit) const {
    visit(address_);
    for (uint64_t field = 0; field < types_.size(); field++) {
        if (!is_reference(field) || words_[field] == 0) continue;
        bytes(field);  // checks it
        visit(heap_->follow(words_[field]));
    }
}

void Struct::destroy() {
    std::vector<uint64_t> blocks;
    for_each_block([&](uint64_t block) { blocks.push_back(block); });
    for (uint64_t block : blocks) heap_->free_own(block);
}

}  // namespace bequest
