#include "allocator.hpp"

#include <algorithm>
#include <bit>

#include "heap_errors.hpp"

namespace bequest {

namespace {

// Runs that are looked at for a free unit before a fresh one is made: most are full where little is freed.
constexpr uint64_t kRunsTried = 16;
constexpr uint64_t kRunsPerSegment = 512;  // wished, at least

}  // namespace

uint64_t Block::taken(uint64_t value) const {
    return bit ? checked((value & kCheckedMask) | bit)
               : ChunkWord::make(ChunkKind::kBlock, ChunkWord{value}.chunks()).bits;
}
uint64_t Block::freed(uint64_t value) const {
    return bit ? checked(value & kCheckedMask & ~bit)
               : ChunkWord::make(ChunkKind::kFree, ChunkWord{value}.chunks()).bits;
}
bool Block::is_taken(uint64_t value) const {
    return bit ? value & bit : ChunkWord{value}.kind() == ChunkKind::kBlock;
}

void Allocator::add(Segment* segment) {
    if (segments_.empty()) {
        run_bytes_wished_ = std::clamp(std::bit_floor(segment->header().nbytes / kRunsPerSegment),
                                       segment->chunk_bytes(), kRunBytesMax);
        unit_bytes_max_ =
            std::min(kUnitBytesMax, std::max(segment->chunk_bytes() / 2, run_bytes_wished_ / 8));
    }
    segments_.push_back(segment);
    if (walked_) walk(segment);
}

const Segment* Allocator::segment_with(uint64_t address, uint64_t nbytes) const {
    for (const Segment* segment : segments_)
        if (segment->contains(address, nbytes)) return segment;
    return nullptr;
}

// --- the index ----------------------------------------------------------------------------------

void Allocator::walk() {
    walked_ = true;
    for (Segment* segment : segments_) walk(segment);
}

void Allocator::walk(Segment* segment) {
    segment->make_notes();
    for (uint64_t chunk = 0; chunk < segment->chunk_count();) {
        const ChunkWord record = segment->record(chunk);
        if (record.kind() == ChunkKind::kFree) {
            add_free({segment, chunk, record.chunks()});
        } else if (record.kind() == ChunkKind::kRun) {
            segment->note_run(chunk, record.chunks(), Note::kRunListed);
            listed_[record.size_class()].push_back({segment, chunk});
        } else {
            segment->note(chunk) = Note::kBlock;
        }
        chunk += record.chunks();
    }
}

void Allocator::add_free(const FreeRange& added) {
    FreeRange range = added;
    const auto address = [&] { return range.segment->address_of(range.chunk); };
    const auto touches = [&](const FreeRange& left, const FreeRange& right) {
        return left.segment == right.segment && left.chunk + left.chunks == right.chunk;
    };
    auto next = free_.upper_bound(address());
    if (next != free_.end() && touches(range, next->second)) {
        range.chunks += next->second.chunks;
        remove_free(next++);
    }
    if (next != free_.begin() && touches(std::prev(next)->second, range)) {
        range.chunk = std::prev(next)->second.chunk;
        range.chunks += std::prev(next)->second.chunks;
        remove_free(std::prev(next));
    }
    free_.emplace(address(), range);
    by_size_.emplace(range.chunks * range.segment->chunk_bytes(), address());
}

void Allocator::remove_free(std::map<uint64_t, FreeRange>::iterator range) {
    by_size_.erase({range->second.chunks * range->second.segment->chunk_bytes(), range->first});
    free_.erase(range);
}

// --- chunks ---------------------------------------------------------------------------------------

bool Allocator::take(uint64_t nbytes, FreeRange& taken) {
    const auto fits = by_size_.lower_bound({nbytes, 0});
    if (fits == by_size_.end()) return false;
    const auto found = free_.find(fits->second);
    const FreeRange range = found->second;
    taken = {range.segment, range.chunk, range.segment->chunks_for(nbytes)};
    range.segment->cut(range.chunk, taken.chunks, range.chunks);
    remove_free(found);
    if (taken.chunks < range.chunks)
        add_free({range.segment, range.chunk + taken.chunks, range.chunks - taken.chunks});
    return true;
}

Block Allocator::reserve_chunks(uint64_t nbytes) {
    if (!walked_) walk();
    FreeRange taken;
    if (!take(nbytes, taken) && !(reclaim() && take(nbytes, taken)) &&
        !(grow_(nbytes) && take(nbytes, taken)))
        raise<HeapFull>("the heap has no room for %lu bytes in one piece", nbytes);
    const Segment& segment = *taken.segment;
    segment.note(taken.chunk) = Note::kBlock;
    const uint64_t address = segment.address_of(taken.chunk);
    reserved_.push_back(address);
    return {address,     taken.chunks * segment.chunk_bytes(), &segment,
            taken.chunk, &segment.word(taken.chunk),           0};
}

// --- units ----------------------------------------------------------------------------------------

Block Allocator::reserve(uint64_t nbytes) {
    if (!walked_) walk();
    if (nbytes > unit_bytes_max_) return reserve_chunks(nbytes);
    const uint32_t size_class = class_of(nbytes);
    Block block;
    while (!next_unit(current_[size_class], block))
        if (!next_run(size_class)) raise<HeapFull>("the heap has no room for %lu bytes", nbytes);
    reserved_.push_back(block.address);
    return block;
}

bool Allocator::next_unit(CurrentRun& run, Block& block) {
    for (; run.cursor < run.shape.words(); run.cursor++) {
        uint64_t& available = run.available[run.cursor];
        if (available == 0) continue;
        const auto bit = static_cast<uint64_t>(std::countr_zero(available));
        available &= available - 1;
        block = unit({run.segment, run.chunk}, run.shape, run.cursor * RunShape::kUnitsPerWord + bit);
        return true;
    }
    return false;
}

Block Allocator::unit(const Place& run, const RunShape& shape, uint64_t index) {
    return {run.segment->address_of(run.chunk) + shape.first + index * shape.unit_bytes,
            shape.unit_bytes,
            run.segment,
            run.chunk,
            run.segment->bitmap(run.chunk) + index / RunShape::kUnitsPerWord,
            1ull << index % RunShape::kUnitsPerWord};
}

bool Allocator::next_run(uint32_t size_class) {
    leave(current_[size_class]);
    return use_listed_run(size_class, kRunsTried) || use_fresh_run(size_class, false) ||
           use_listed_run(size_class, UINT64_MAX) || (reclaim() && use_fresh_run(size_class, false)) ||
           use_fresh_run(size_class, true) ||
           (grow_(run_bytes(size_class)) && use_fresh_run(size_class, false));
}

// A listed run may have become something else since; then its note says so.
bool Allocator::use_listed_run(uint32_t size_class, uint64_t tries) {
    std::vector<Place>& listed = listed_[size_class];
    for (; tries > 0 && !listed.empty(); tries--) {
        const Place place = listed.back();
        listed.pop_back();
        if (place.segment->note(place.chunk) != Note::kRunListed) continue;
        if (place.segment->record(place.chunk).size_class() != size_class) continue;
        CurrentRun& run = current_[size_class];
        use(run, place);
        if (std::any_of(run.available, run.available + run.shape.words(), [](uint64_t word) { return word; }))
            return true;
        leave(run);
    }
    return false;
}

void Allocator::use(CurrentRun& run, const Place& place) {
    const ChunkWord record = place.segment->record(place.chunk);
    run.segment = place.segment;
    run.chunk = place.chunk;
    run.shape = place.segment->shape(record);
    run.cursor = 0;
    for (uint64_t i = 0; i < run.shape.words(); i++) {
        const uint64_t first = i * RunShape::kUnitsPerWord;
        const uint64_t units = std::min(RunShape::kUnitsPerWord, run.shape.units - first);
        run.available[i] = ~place.segment->units_taken(place.chunk, i) & ((1ull << units) - 1);
    }
    place.segment->note(place.chunk) = Note::kRunCurrent;
}

void Allocator::leave(CurrentRun& run) {
    if (run.segment) run.segment->note(run.chunk) = Note::kRunFull;
    run.segment = nullptr;
    run.shape = {};
    run.cursor = 0;
}

uint64_t Allocator::run_bytes(uint32_t size_class) const {
    const uint64_t least = kRunUnitsMin * unit_bytes_of(size_class) + kUnitAlign;
    const Segment& first = *segments_[0];
    return first.chunks_for(std::max(run_bytes_wished_, least)) * first.chunk_bytes();
}

// The shortest has one unit: the last resort of a heap that is almost full.
bool Allocator::use_fresh_run(uint32_t size_class, bool shortest) {
    FreeRange taken;
    const uint64_t bytes = shortest ? unit_bytes_of(size_class) + kUnitAlign : run_bytes(size_class);
    if (!take(bytes, taken)) return false;
    taken.segment->make_run(taken.chunk, taken.chunks, size_class);
    taken.segment->note_run(taken.chunk, taken.chunks, Note::kRunCurrent);
    use(current_[size_class], {taken.segment, taken.chunk});
    return true;
}

// --- back -------------------------------------------------------------------------------------------

Block Allocator::find(uint64_t address) {
    if (!walked_) walk();
    const Segment* segment = segment_with(address, 1);
    if (!segment) raise<HeapMisuse>("%#lx is not an address in this heap", address);
    const uint64_t chunk = segment->first_of(segment->chunk_of(address));
    const Note note = segment->note(chunk);
    if (note == Note::kBlock && address == segment->address_of(chunk))
        return {address,
                segment->record(chunk).chunks() * segment->chunk_bytes(),
                segment,
                chunk,
                &segment->word(chunk),
                0};
    if (note >= Note::kRunFull) {
        const RunShape shape = segment->shape(segment->record(chunk));
        const uint64_t offset = address - segment->address_of(chunk) - shape.first;
        if (address >= segment->address_of(chunk) + shape.first && offset % shape.unit_bytes == 0 &&
            offset / shape.unit_bytes < shape.units) {
            const uint64_t index = offset / shape.unit_bytes;
            segment->units_taken(chunk, index / RunShape::kUnitsPerWord);  // checks it
            return unit({segment, chunk}, shape, index);
        }
    }
    raise<HeapMisuse>("no allocation of this heap begins at %#lx", address);
}

void Allocator::release(const Block& block) {
    const Segment& segment = *block.segment;
    if (block.bit == 0) {
        const uint64_t chunks = block.nbytes / segment.chunk_bytes();
        segment.forget(block.chunk, chunks);
        return add_free({&segment, block.chunk, chunks});
    }
    Note& note = segment.note(block.chunk);
    const uint32_t size_class = segment.record(block.chunk).size_class();
    if (note == Note::kRunCurrent) {
        CurrentRun& run = current_[size_class];
        const auto word = static_cast<uint64_t>(block.word - segment.bitmap(block.chunk));
        run.available[word] |= block.bit;
        run.cursor = std::min(run.cursor, word);
    } else if (note == Note::kRunFull) {
        note = Note::kRunListed;
        listed_[size_class].push_back({&segment, block.chunk});
    }
    if ((*block.word & kCheckedMask & ~block.bit) == 0) maybe_empty_ = true;
}

bool Allocator::is_empty(const Place& run, const RunShape& shape) {
    for (uint64_t i = 0; i < shape.words(); i++)
        if (run.segment->units_taken(run.chunk, i) != 0) return false;
    return true;
}

// Makes free chunks of all runs that nobody has anything in.
bool Allocator::reclaim() {
    if (!maybe_empty_) return false;
    maybe_empty_ = false;
    std::set<uint64_t> spared;  // the records that this transaction has reserved from
    for (const uint64_t address : reserved_) {
        const Block block = find(address);
        spared.insert(block.segment->address_of(block.chunk));
    }
    bool found = false;
    for (const Segment* segment : segments_)
        for (uint64_t chunk = 0; chunk < segment->chunk_count();) {
            const ChunkWord record = segment->record(chunk);
            if (record.kind() == ChunkKind::kRun && is_empty({segment, chunk}, segment->shape(record)) &&
                !spared.contains(segment->address_of(chunk))) {
                if (segment->note(chunk) == Note::kRunCurrent) leave(current_[record.size_class()]);
                segment->unmake_run(chunk);
                segment->forget(chunk, record.chunks());
                add_free({segment, chunk, record.chunks()});
                found = true;
            }
            chunk += record.chunks();
        }
    return found;
}

// --- looking on -----------------------------------------------------------------------------------

void Allocator::for_each(const std::function<void(const Block&)>& visit) const {
    for (const Segment* segment : segments_)
        for (uint64_t chunk = 0; chunk < segment->chunk_count();) {
            const ChunkWord record = segment->record(chunk);
            if (record.kind() == ChunkKind::kBlock)
                visit({segment->address_of(chunk), record.chunks() * segment->chunk_bytes(), segment, chunk,
                       &segment->word(chunk), 0});
            if (record.kind() == ChunkKind::kRun) {
                const RunShape shape = segment->shape(record);
                for (uint64_t i = 0; i < shape.units; i++) {
                    const Block block = unit({segment, chunk}, shape, i);
                    if (block.is_taken(segment->units_taken(chunk, i / RunShape::kUnitsPerWord)))
                        visit(block);
                }
            }
            chunk += record.chunks();
        }
}

uint64_t Allocator::free_bytes() const {
    uint64_t bytes = 0;
    for (const Segment* segment : segments_)
        for (uint64_t chunk = 0; chunk < segment->chunk_count();) {
            const ChunkWord record = segment->record(chunk);
            if (record.kind() == ChunkKind::kFree) bytes += record.chunks() * segment->chunk_bytes();
            if (record.kind() == ChunkKind::kRun) {
                const RunShape shape = segment->shape(record);
                uint64_t units = shape.units;
                for (uint64_t i = 0; i < shape.words(); i++)
                    units -= static_cast<uint64_t>(std::popcount(segment->units_taken(chunk, i)));
                bytes += units * shape.unit_bytes;
            }
            chunk += record.chunks();
        }
    return bytes;
}

}  // namespace bequest
