#include "array.hpp"

#include <algorithm>
#include <cstring>

namespace bequest {

namespace {

constexpr uint64_t kArrayBytesMax = 1ull << 46;
constexpr uint64_t kTextBytesMax = 1 << 20;
constexpr unsigned char kZeroes[4096] = {};

uint64_t seed_of(std::string_view text) { return text.size() << 32 | crc32c(text.data(), text.size()); }

}  // namespace

// --- making and opening ---------------------------------------------------------------------------

// Of bytes, or of zeroes: and flushed, for nobody else does it.
void Array::fill(Heap& heap, unsigned char* place, const void* bytes, uint64_t nbytes) {
    if (nbytes == 0) return;
    if (bytes) {
        heap.medium().copy(place, bytes, nbytes);
    } else {
        for (uint64_t done = 0; done < nbytes; done += sizeof kZeroes)
            heap.medium().copy(place + done, kZeroes, std::min(nbytes - done, sizeof kZeroes));
    }
    heap.medium().flush(place, nbytes);
}

uint64_t Array::make_block(Heap& heap, uint64_t nbytes) {
    const uint64_t address = heap.alloc(sizeof(ArrayBlock) + nbytes, Heap::Flushed::kByUser);
    const ArrayBlock block{checked(heap.nbytes_of(address) - sizeof block), 0};
    fill(heap, reinterpret_cast<unsigned char*>(address), &block, sizeof block);
    return address;
}

uint64_t Array::make(Heap& heap, std::string_view text, uint64_t row_bytes, uint64_t rows) {
    uint64_t nbytes = 0;
    if (row_bytes == 0 || __builtin_mul_overflow(row_bytes, rows, &nbytes) || nbytes > kArrayBytesMax)
        raise<HeapMisuse>("there can be no Array of %lu rows of %lu bytes", rows, row_bytes);
    if (text.size() > kTextBytesMax) raise<HeapMisuse>("what an Array's rows are takes at most 1 MiB to say");
    uint64_t block = 0;
    if (nbytes > 0) {
        block = make_block(heap, nbytes);
        fill(heap, reinterpret_cast<unsigned char*>(block) + sizeof(ArrayBlock), nullptr, nbytes);
    }
    const uint64_t address = heap.alloc(sizeof(ArrayHeader) + text.size());
    const ArrayHeader header{ObjectHeader::make(ObjectKind::kArray, seed_of(text)), checked(row_bytes),
                             checked(rows), Reference::make(block).bits};
    heap.medium().copy(reinterpret_cast<void*>(address), &header, sizeof header);
    heap.medium().copy(reinterpret_cast<void*>(address + sizeof header), text.data(), text.size());
    return address;
}

Array::Array(Heap& heap, std::string_view name, std::string_view text, uint64_t row_bytes, uint64_t rows)
    : Array(heap, find_or_make(heap, name, ObjectKind::kArray,
                               [&](Heap& h) { return make(h, text, row_bytes, rows); })) {}

Array::Array(Heap& heap, uint64_t address)
    : heap_(&heap), address_(address), header_(&heap.at<ArrayHeader>(address)) {
    header().object.check(ObjectKind::kArray, address);
    if (seed_of(text()) != header().object.seed)
        raise<CorruptHeap>("the Array at %#lx has a damaged type", address);
}

// --- what is there ----------------------------------------------------------------------------------

std::string_view Array::text() const {
    const uint64_t nbytes = header().object.seed >> 32;
    heap_->require(address_, sizeof(ArrayHeader) + nbytes);
    return {reinterpret_cast<const char*>(&header() + 1), nbytes};
}

uint64_t Array::row_bytes() const {
    const uint64_t row_bytes = header().row_bytes & kCheckedMask;
    if (!is_sound(header().row_bytes) || row_bytes == 0)
        raise<CorruptHeap>("the Array at %#lx has a damaged header", address_);
    return row_bytes;
}

ArrayBlock* Array::block() const {
    const uint64_t address = heap_->follow(header().block);
    if (address == 0) return nullptr;
    auto& block = heap_->at<ArrayBlock>(address);
    if (!is_sound(block.nbytes)) raise<CorruptHeap>("the Array at %#lx has a damaged block", address_);
    heap_->require(address, sizeof block + (block.nbytes & kCheckedMask));
    return &block;
}

uint64_t Array::room() const {
    const ArrayBlock* rows = block();
    return rows ? (rows->nbytes & kCheckedMask) / row_bytes() : 0;
}

uint64_t Array::rows() const {
    const uint64_t rows = header().rows & kCheckedMask;
    if (!is_sound(header().rows) || rows > room())
        raise<CorruptHeap>("the Array at %#lx has a damaged length", address_);
    return rows;
}

unsigned char* Array::data() const {
    return reinterpret_cast<unsigned char*>(block() ? block() + 1 : nullptr);
}

// --- changing -------------------------------------------------------------------------------------

uint64_t Array::require_size(uint64_t rows) const {
    if (rows > kArrayBytesMax / row_bytes())
        raise<HeapMisuse>("there can be no Array of %lu rows of %lu bytes", rows, row_bytes());
    return rows;
}

// To another block: the first rows, and some more.
void Array::move(uint64_t kept, const void* added, uint64_t count, uint64_t room) {
    Transaction transaction(*heap_);
    const uint64_t before = heap_->follow(header().block);
    uint64_t after = 0;
    if (room > 0) {
        after = make_block(*heap_, room * row_bytes());
        auto* place = reinterpret_cast<unsigned char*>(after) + sizeof(ArrayBlock);
        if (kept > 0) fill(*heap_, place, data(), kept * row_bytes());
        fill(*heap_, place + kept * row_bytes(), added, count * row_bytes());
    }
    if (before != 0) heap_->free_own(before);
    heap_->set({{&header().block, Reference::make(after).bits}, {&header().rows, checked(kept + count)}});
    transaction.commit();
}

// With room for more to come, if there is.
void Array::grow(uint64_t present, const void* added, uint64_t count) {
    const uint64_t wanted = present + count;
    try {
        move(present, added, count, std::max(wanted, present + present / 2));
    } catch (const HeapFull&) {
        move(present, added, count, wanted);
    }
}

void Array::append(const void* added, uint64_t count) {
    const uint64_t present = rows(), wanted = require_size(present + count);
    if (count == 0) return;
    if (wanted > room()) return grow(present, added, count);
    fill(*heap_, data() + present * row_bytes(), added, count * row_bytes());
    heap_->publish(header().rows, checked(wanted));
}

void Array::resize(uint64_t wanted) {
    const uint64_t present = rows();
    require_size(wanted);
    if (wanted >= present) return append(nullptr, wanted - present);
    if (heap_->depth() > 0) return move(wanted, nullptr, 0, wanted);
    heap_->publish(header().rows, checked(wanted));
    if (wanted <= room() / 4) give_back();
}

// Most of the block, if that can be done: there may be no room for a smaller one beside it.
void Array::give_back() {
    try {
        move(rows(), nullptr, 0, rows());
    } catch (const HeapFull&) {
    }
}

void Array::require_inside(uint64_t offset, uint64_t nbytes) const {
    if (offset > this->nbytes() || nbytes > this->nbytes() - offset)
        raise<HeapMisuse>("%lu bytes at %lu are not in this Array of %lu", nbytes, offset, this->nbytes());
}

// What lies within one word is changed by changing that.
void Array::write(uint64_t offset, const void* bytes, uint64_t nbytes) {
    require_inside(offset, nbytes);
    unsigned char* place = data() + offset;
    const uint64_t within = reinterpret_cast<uint64_t>(place) % sizeof(uint64_t);
    if (within + nbytes <= sizeof(uint64_t)) {
        auto& word = *reinterpret_cast<uint64_t*>(place - within);
        uint64_t value = word;
        std::memcpy(reinterpret_cast<unsigned char*>(&value) + within, bytes, nbytes);
        return heap_->publish(word, value);
    }
    Transaction transaction(*heap_);
    heap_->snapshot(place, nbytes);
    heap_->medium().copy(place, bytes, nbytes);
    transaction.commit();
}

void Array::snapshot(uint64_t offset, uint64_t nbytes) {
    require_inside(offset, nbytes);
    if (nbytes > 0) heap_->snapshot(data() + offset, nbytes);
}

void Array::for_each_block(const std::function<void(uint64_t)>& visit) const {
    visit(address_);
    rows();  // checks it
    if (header().block != 0) visit(heap_->follow(header().block));
}

void Array::destroy() {
    const uint64_t block = heap_->follow(header().block);
    heap_->free_own(address_);
    if (block != 0) heap_->free_own(block);
}

}  // namespace bequest
