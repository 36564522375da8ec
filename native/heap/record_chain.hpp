// Log and Queue: checksummed records, added at one end and taken away from the other.
//
// Theory of operation. The records lie one behind the other in blocks that are linked. Two words say where it
// begins and where it ends: how far into the first block, and how far into the last. A record is written
// behind the end, where nobody looks, and made durable; then the end's word is moved over it, over a whole
// batch at once if there is one: a shadow copy. To drop records from the front is to move the other word.
// Only where a block begins or becomes empty is there a transaction.
//
// An index counts all records that there ever were; a block knows the index of its first. Each record's
// checksum covers its index too, so that an old one in its place is not taken for it.
#pragma once

#include <functional>
#include <span>

#include "object.hpp"

namespace bequest {

struct ChainPlace {  // in a block: how many records lie before it, and how many words of 8 bytes
    uint64_t records, words;
    static constexpr unsigned kBits = 26;
    uint64_t packed() const { return checked(records << kBits | words); }
    static ChainPlace unpacked(uint64_t word) {
        return {(word & kCheckedMask) >> kBits, word & ((1ull << kBits) - 1)};
    }
};

struct ChainBlock {  // then its records
    uint64_t next;
    uint64_t first_index;
    uint64_t nbytes;  // of records, at most
    uint64_t crc;     // of the two before
};

struct ChainRecord {  // then its data, up to a multiple of 8 bytes
    uint32_t nbytes;
    uint32_t crc;  // of its index, its size and its data
};

struct ChainHeader {
    ObjectHeader object;
    uint64_t first_block, last_block;
    uint64_t first, last;  // ChainPlace in them
};

class RecordChain {
public:
    static constexpr uint64_t kRecordBytesMax = 256 << 20;

    RecordChain(Heap& heap, std::string_view name, ObjectKind kind);
    static uint64_t make(Heap& heap, ObjectKind kind);  // within a transaction

    Heap& heap() const { return heap_; }
    uint64_t address() const { return address_; }
    uint64_t first_index() const;
    uint64_t end_index() const;
    uint64_t size() const { return end_index() - first_index(); }

    // All of them or none. The index of the first.
    uint64_t append(std::span<const std::string_view> records);
    uint64_t append(std::string_view record) { return append({&record, 1}); }
    // Drops all before `index`; how many those were.
    uint64_t drop_before(uint64_t index);
    void destroy();  // frees everything, within a transaction

    // Good until its record is dropped: one step from a given index to the end. Records are checked as they
    // are read.
    class Cursor {
    public:
        Cursor(const RecordChain& chain, uint64_t index);
        std::optional<std::string_view> next();
        uint64_t index() const { return index_; }

    private:
        friend class RecordChain;
        bool pass_block(uint64_t wanted);

        const RecordChain& chain_;
        const ChainBlock* block_;
        uint64_t index_, words_, blocks_left_;
    };
    void for_each_block(const std::function<void(uint64_t)>& visit) const;

private:
    ChainHeader& header() const { return *header_; }
    ChainBlock& block_at(uint64_t address) const;
    uint64_t blocks_max() const;
    ChainPlace place(uint64_t word, const ChainBlock& block) const;
    ChainPlace write(ChainBlock& block, ChainPlace at, std::string_view record);
    ChainBlock& add_block(const ChainBlock& last, uint64_t first_index, uint64_t nbytes_min);
    const ChainRecord& record_at(const ChainBlock& block, uint64_t words, uint64_t index) const;
    [[noreturn]] void raise_damaged(const char* what) const;

    Heap& heap_;
    uint64_t address_;
    ChainHeader* header_;
};

}  // namespace bequest
