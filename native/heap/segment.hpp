// One segment of a heap: its header, its chunk table, and the records in it (theory: heap_layout.hpp).
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>

#include "heap_layout.hpp"
#include "medium.hpp"

namespace bequest {

class Segment {
public:
    // Lays it out, all of it one free record, but for the magic: it is no segment before `seal`. Both flush
    // what they write; that `seal` has happened is waited for with the next fence.
    static void format(Medium medium, uint64_t address, uint64_t nbytes, uint64_t heap_id, uint32_t index);
    static void seal(Medium medium, uint64_t address);

    // Throws CorruptHeap or ForeignHeap if there is no segment whose header says this.
    Segment(Medium medium, uint64_t address, uint64_t nbytes);

    const SegmentHeader& header() const { return *header_; }
    uint64_t chunk_count() const { return header_->chunk_count; }
    uint64_t chunk_bytes() const { return 1ull << header_->chunk_bits; }
    uint64_t chunks_for(uint64_t nbytes) const { return (nbytes + chunk_bytes() - 1) >> header_->chunk_bits; }
    uint64_t address_of(uint64_t chunk) const { return first_chunk_ + (chunk << header_->chunk_bits); }
    uint64_t chunk_of(uint64_t address) const { return (address - first_chunk_) >> header_->chunk_bits; }
    // In the chunks. Two comparisons, for every address that is read from a heap comes here.
    bool contains(uint64_t address, uint64_t nbytes) const {
        const uint64_t offset = address - first_chunk_;
        return offset < chunk_area_ && nbytes <= chunk_area_ - offset;
    }
    bool can_be_logged(uint64_t address, uint64_t nbytes) const;

    // --- records ------------------------------------------------------------------------------
    uint64_t& word(uint64_t chunk) const { return table_[chunk]; }
    ChunkWord record(uint64_t chunk) const;  // one that begins there; throws CorruptHeap
    RunShape shape(ChunkWord run) const {
        return RunShape::make(run.chunks() << header_->chunk_bits, unit_bytes_of(run.size_class()));
    }
    uint64_t* bitmap(uint64_t chunk) const { return reinterpret_cast<uint64_t*>(address_of(chunk)); }
    uint64_t units_taken(uint64_t chunk, uint64_t word) const;  // of a run's bitmap; throws CorruptHeap

    // Each of these means nothing until the first chunk's word has been written. `total` free chunks from
    // `chunk` on become a record of `chunks` and one of what is left.
    void cut(uint64_t chunk, uint64_t chunks, uint64_t total) const;
    ChunkWord make_run(uint64_t chunk, uint64_t chunks, uint32_t size_class) const;
    void unmake_run(uint64_t chunk) const;

    // This process's own notes about each chunk, made by whoever walks the table.
    enum class Note : uint8_t {
        kNothing = 0,  // or 1…63: in a run, so many chunks behind its first
        kBlock = 64,
        kRunFull,
        kRunListed,
        kRunCurrent
    };
    Note& note(uint64_t chunk) const { return notes_[chunk]; }
    uint64_t first_of(uint64_t chunk) const {
        return notes_[chunk] < Note::kBlock ? chunk - static_cast<uint64_t>(notes_[chunk]) : chunk;
    }
    void note_run(uint64_t chunk, uint64_t chunks, Note first) const;
    void forget(uint64_t chunk, uint64_t chunks) const;
    void make_notes();

private:
    Medium medium_;
    SegmentHeader* header_;
    uint64_t* table_;
    uint64_t first_chunk_, chunk_area_;
    std::unique_ptr<Note[], void (*)(void*)> notes_{nullptr, std::free};
};

}  // namespace bequest
