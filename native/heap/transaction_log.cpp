#include "transaction_log.hpp"

#include <algorithm>

#include "checksum.hpp"
#include "heap_errors.hpp"

namespace bequest {

namespace {

constexpr uint64_t kContinuedBytes =
    sizeof(LogEntry) + sizeof(uint64_t);  // always left free at an area's end

uint64_t space_of(uint64_t nbytes) { return sizeof(LogEntry) + rounded_up(nbytes, 8); }
EntryKind kind_of(const LogEntry& entry) { return static_cast<EntryKind>(entry.tag & 3); }
const unsigned char* data_of(const LogEntry& entry) {
    return reinterpret_cast<const unsigned char*>(&entry) + sizeof(LogEntry);
}

uint32_t checksum(uint32_t seed, const LogEntry& entry, const void* data) {
    uint32_t crc = crc32c_word(seed, entry.tag);
    crc = crc32c_word(crc, entry.address);
    crc = crc32c_word(crc, entry.nbytes);
    if (entry.nbytes != sizeof(uint64_t)) return ~crc32c_more(crc, data, entry.nbytes);
    uint64_t word;
    std::memcpy(&word, data, sizeof word);
    return ~crc32c_word(crc, word);
}

}  // namespace

// What an earlier heap has left in the same memory, perhaps with the same serial, is not this heap's.
TransactionLog::TransactionLog(Medium medium, uint64_t heap_id, HeapHeader& header, LogArea first,
                               LogHost& host)
    : medium_(medium), seed_(crc32c_word(~0u, heap_id)), header_(header), first_(first), host_(host) {}

void TransactionLog::begin() {
    area_ = first_;
    place_ = entries_ = 0;
    forget_words();
}

void TransactionLog::append(EntryKind kind, const void* at, const void* data, uint64_t nbytes) {
    const auto address = reinterpret_cast<uint64_t>(at);
    const auto* bytes = static_cast<const unsigned char*>(data);
    for (uint64_t done = 0; done < nbytes || done == 0; done += kEntryBytesMax)
        append_piece(kind, address + done, bytes + done, std::min(nbytes - done, kEntryBytesMax));
}

void TransactionLog::append_piece(EntryKind kind, uint64_t address, const void* data, uint64_t nbytes) {
    const uint64_t space = space_of(nbytes);
    if (place_ + space + kContinuedBytes > area_.nbytes && kind != EntryKind::kContinued) move_on(space);
    LogEntry entry{phase().serial() << 2 | static_cast<uint64_t>(kind), address,
                   static_cast<uint32_t>(nbytes), 0};
    entry.crc = checksum(seed_, entry, data);
    auto* there = reinterpret_cast<unsigned char*>(area_.address + place_);
    medium_.copy(there, &entry, sizeof entry);
    medium_.copy(there + sizeof entry, data, nbytes);
    medium_.flush(there, sizeof entry + nbytes);
    place_ += space;
    entries_++;
}

void TransactionLog::move_on(uint64_t nbytes) {
    const LogArea next = host_.more_log(nbytes + kContinuedBytes);
    append_piece(EntryKind::kContinued, next.address, &next.nbytes, sizeof next.nbytes);
    area_ = next;
    place_ = 0;
}

const LogEntry* TransactionLog::valid_entry(const LogArea& area, uint64_t offset, uint64_t serial) const {
    if (offset + sizeof(LogEntry) > area.nbytes) return nullptr;
    const auto* entry = reinterpret_cast<const LogEntry*>(area.address + offset);
    if (entry->tag >> 2 != serial || entry->nbytes > area.nbytes - offset - sizeof(LogEntry)) return nullptr;
    return entry->crc == checksum(seed_, *entry, data_of(*entry)) ? entry : nullptr;
}

std::vector<const LogEntry*> TransactionLog::read() const {
    std::vector<const LogEntry*> found;
    LogArea area = first_;
    uint64_t offset = 0, seen = 0;
    const uint64_t serial = phase().serial();
    while (const LogEntry* entry = valid_entry(area, offset, serial)) {
        seen += space_of(entry->nbytes);
        if (seen > host_.heap_bytes())
            raise<CorruptHeap>("the heap's log is longer than the heap: it leads in a circle");
        found.push_back(entry);
        offset += space_of(entry->nbytes);
        if (kind_of(*entry) != EntryKind::kContinued) {
            if (kind_of(*entry) != EntryKind::kRedoEnd && !host_.can_be_logged(entry->address, entry->nbytes))
                raise<CorruptHeap>("the heap's log speaks of %u bytes at %#lx, which are not the heap's",
                                   entry->nbytes, entry->address);
            continue;
        }
        area = {entry->address, 0};
        std::memcpy(&area.nbytes, data_of(*entry), std::min<uint64_t>(entry->nbytes, sizeof area.nbytes));
        if (!host_.can_hold_log(area))
            raise<CorruptHeap>("the heap's log goes on at %#lx, which is not the heap's", area.address);
        offset = 0;
    }
    require_hardened(found.size());
    return found;
}

void TransactionLog::require_hardened(uint64_t found) const {
    const Hardened hardened{header_.hardened};
    if (!hardened.sound())
        raise<CorruptHeap>("the word %#lx, which says how much of the heap's log is whole, is damaged",
                           hardened.bits);
    if (hardened.is_of(phase().serial()) && found < hardened.entries())
        raise<CorruptHeap>(
            "the heap's log is damaged: of %lu entries of the transaction under way %lu are left, and "
            "without the others it cannot be undone",
            hardened.entries(), found);
}

// Cut off, it is done again: the log holds until the serial is raised, and nobody reads the place before.
void TransactionLog::put(const LogEntry& entry) {
    auto* place = reinterpret_cast<void*>(entry.address);
    medium_.copy(place, data_of(entry), entry.nbytes);
    medium_.flush(place, entry.nbytes);
}

void TransactionLog::flush_places() const {
    if (!medium_.is_durable()) return;
    for (const LogEntry* entry : read())
        if (kind_of(*entry) == EntryKind::kUndo)
            medium_.flush(reinterpret_cast<const void*>(entry->address), entry->nbytes);
}

void TransactionLog::undo(uint64_t from_entry) {
    const auto entries = read();
    for (uint64_t i = entries.size(); i > from_entry; i--)
        if (kind_of(*entries[i - 1]) == EntryKind::kUndo) put(*entries[i - 1]);
    medium_.fence();
}

void TransactionLog::redo() {
    const auto entries = read();
    if (entries.empty() || kind_of(*entries.back()) != EntryKind::kRedoEnd)
        raise<CorruptHeap>("the heap's log was committed and is not whole any more");
    for (const LogEntry* entry : entries)
        if (kind_of(*entry) == EntryKind::kRedo) put(*entry);
    medium_.fence();
}

void TransactionLog::mark_redo() { medium_.commit(header_.phase, Phase::make(phase().serial(), true).bits); }

void TransactionLog::raise_serial() {
    medium_.commit(header_.phase, Phase::make(phase().serial() + 1, false).bits);
}

TransactionLog::Recovery TransactionLog::recover() {
    if (!phase().sound()) raise<CorruptHeap>("the heap's phase word %#lx is damaged", header_.phase);
    Recovery recovery;
    for (const LogEntry* entry : read())
        if (kind_of(*entry) == (phase().redo() ? EntryKind::kRedo : EntryKind::kUndo)) {
            recovery.entries++;
            recovery.nbytes += entry->nbytes;
        }
    if (phase().redo()) {
        redo();
        recovery.rolled_forward = true;
    } else if (recovery.entries > 0) {
        undo(0);
        recovery.rolled_back = true;
    }
    raise_serial();
    begin();
    return recovery;
}

}  // namespace bequest
