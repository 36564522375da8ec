#include "segment.hpp"

#include <algorithm>
#include <new>

#include "checksum.hpp"
#include "heap_errors.hpp"

namespace bequest {

namespace {

constexpr uint64_t kSmallSegmentBytes = 1 << 20;  // below it a chunk is 1 KiB, from it on a page

uint64_t crc_of(const SegmentHeader& header) { return crc32c(&header, offsetof(SegmentHeader, crc)); }

// As many chunks as fit behind a table of their words.
void lay_out(SegmentHeader& h) {
    h.chunk_bits = h.nbytes < kSmallSegmentBytes ? 10 : 12;
    h.log_offset = h.index == 0 ? kLogOffset : 0;
    h.log_bytes =
        h.index == 0 ? std::clamp(h.nbytes / 32 / kLineBytes * kLineBytes, kLogBytesMin, kLogBytesMax) : 0;
    h.table_offset = h.index == 0 ? h.log_offset + h.log_bytes : sizeof(SegmentHeader);
    const uint64_t chunk_bytes = 1ull << h.chunk_bits;
    h.chunk_count = (h.nbytes - h.table_offset) / (chunk_bytes + sizeof(uint64_t));
    do {
        h.chunks_offset = rounded_up(h.table_offset + h.chunk_count * sizeof(uint64_t), chunk_bytes);
    } while (h.chunks_offset + h.chunk_count * chunk_bytes > h.nbytes && h.chunk_count--);
}

}  // namespace

void Segment::format(Medium medium, uint64_t address, uint64_t nbytes, uint64_t heap_id, uint32_t index) {
    auto* there = reinterpret_cast<SegmentHeader*>(address);
    medium.commit(there->magic, 0);  // what an earlier heap has left here is one no more
    SegmentHeader header{};
    header.magic = kHeapMagic;
    header.version = kHeapVersion;
    header.index = index;
    header.heap_id = heap_id;
    header.address = address;
    header.nbytes = nbytes;
    lay_out(header);
    header.crc = crc_of(header);
    medium.copy(&there->version, &header.version, sizeof header - offsetof(SegmentHeader, version));
    medium.flush(there, sizeof header);
    auto& first = *reinterpret_cast<uint64_t*>(address + header.table_offset);
    medium.store(first, ChunkWord::make(ChunkKind::kFree, header.chunk_count).bits);
    medium.flush(&first, sizeof first);
}

void Segment::seal(Medium medium, uint64_t address) {
    uint64_t& magic = reinterpret_cast<SegmentHeader*>(address)->magic;
    medium.fence();
    medium.store(magic, kHeapMagic);
    medium.flush(&magic, sizeof magic);
}

Segment::Segment(Medium medium, uint64_t address, uint64_t nbytes)
    : medium_(medium), header_(reinterpret_cast<SegmentHeader*>(address)) {
    const SegmentHeader h = *header_;
    if (nbytes < kHeapBytesMin || h.magic != kHeapMagic)
        raise<CorruptHeap>("there is no heap at %#lx", address);
    if (h.version != kHeapVersion)
        raise<ForeignHeap>(
            "the heap at %#lx has format %u, and this library writes format %u: open it with the version "
            "of Bequest that made it",
            address, h.version, kHeapVersion);
    if (h.crc != crc_of(h)) raise<CorruptHeap>("the header of the heap at %#lx is damaged", address);
    if (h.address != address)
        raise<CorruptHeap>(
            "the heap at %#lx was made at %#lx: a copy of a heap is none, for its pointers lead "
            "into the original",
            address, h.address);
    if (h.nbytes > nbytes)
        raise<CorruptHeap>("of the %lu bytes of the heap at %#lx only %lu are here", h.nbytes, address,
                           nbytes);
    table_ = reinterpret_cast<uint64_t*>(address + h.table_offset);
    first_chunk_ = address + h.chunks_offset;
    chunk_area_ = h.chunk_count << h.chunk_bits;
}

bool Segment::can_be_logged(uint64_t address, uint64_t nbytes) const {
    if (contains(address, nbytes)) return true;
    const auto within = [&](uint64_t start, uint64_t length) {
        return address >= start && address - start < length && nbytes <= length - (address - start);
    };
    if (within(reinterpret_cast<uint64_t>(table_), chunk_count() * sizeof(uint64_t))) return true;
    const uint64_t heap_header = header_->address + kHeapHeaderOffset;
    return header_->index == 0 && within(heap_header + offsetof(HeapHeader, roots), 2 * sizeof(uint64_t));
}

uint64_t Segment::units_taken(uint64_t chunk, uint64_t word) const {
    const uint64_t bits = bitmap(chunk)[word];
    if (!is_sound(bits))
        raise<CorruptHeap>("what says which units are in use at %#lx is damaged", address_of(chunk));
    return bits & kCheckedMask;
}

ChunkWord Segment::record(uint64_t chunk) const {
    const ChunkWord word{table_[chunk]};
    if (!word.sound() || word.chunks() > chunk_count() - chunk ||
        (word.kind() == ChunkKind::kRun &&
         (word.size_class() >= kClassCount || word.chunks() << header_->chunk_bits > kRunBytesMax ||
          shape(word).units == 0)))
        raise<CorruptHeap>("the word of chunk %lu in the heap's segment at %#lx is damaged", chunk,
                           header_->address);
    return word;
}

void Segment::cut(uint64_t chunk, uint64_t chunks, uint64_t total) const {
    if (chunks < total)
        medium_.commit(table_[chunk + chunks], ChunkWord::make(ChunkKind::kFree, total - chunks).bits);
    // Nobody waits for this one: as long as the old word stands, everything under it is free, and what makes
    // it something else is another store to the same word.
    medium_.store(table_[chunk], ChunkWord::make(ChunkKind::kFree, chunks).bits);
}

ChunkWord Segment::make_run(uint64_t chunk, uint64_t chunks, uint32_t size_class) const {
    const ChunkWord run = ChunkWord::make(ChunkKind::kRun, chunks, size_class);
    uint64_t empty[kRunWordsMax];
    std::fill_n(empty, shape(run).words(), checked(0));
    const uint64_t bitmap_bytes = shape(run).words() * sizeof(uint64_t);
    medium_.copy(bitmap(chunk), empty, bitmap_bytes);
    medium_.persist(bitmap(chunk), bitmap_bytes);
    // It need not be durable before the next fence: until a commit has set a bit, the run is as good as free.
    medium_.store(table_[chunk], run.bits);
    medium_.flush(&table_[chunk], sizeof(uint64_t));
    return run;
}

void Segment::unmake_run(uint64_t chunk) const {
    medium_.commit(table_[chunk], ChunkWord::make(ChunkKind::kFree, record(chunk).chunks()).bits);
}

// From calloc, so that what is never noted of large free areas costs no memory.
void Segment::make_notes() {
    notes_.reset(static_cast<Note*>(std::calloc(chunk_count(), sizeof(Note))));
    if (!notes_) throw std::bad_alloc();
}

void Segment::note_run(uint64_t chunk, uint64_t chunks, Note first) const {
    notes_[chunk] = first;
    for (uint64_t i = 1; i < chunks; i++) notes_[chunk + i] = static_cast<Note>(i);
}

void Segment::forget(uint64_t chunk, uint64_t chunks) const {
    std::fill_n(&notes_[chunk], chunks, Note::kNothing);
}

}  // namespace bequest
