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
//
// Damage stays where it is. Records are passed over by their lengths, which have check bits of their own, and
// a checksum is computed of what is returned alone: so a record whose data are damaged can be read past and
// dropped. One whose length is damaged hides those behind it in its block: `Cursor` says where the next ones
// are that can be reached.
#pragma once

#include <functional>
#include <span>
#include <string>

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
    uint64_t next;   // a Reference
    uint64_t first_index;
    uint64_t nbytes;  // of records, at most
    uint64_t crc;     // of the two before
};

struct ChainRecord {  // then its data, up to a multiple of 8 bytes
    uint32_t length;  // [ check: 4 | bytes: 28 ]
    uint32_t crc;     // of its index, its size and its data

    static constexpr unsigned kBits = 28;
    static constexpr uint32_t packed(uint32_t nbytes) {
        return nbytes | static_cast<uint32_t>(Reference::folded(nbytes) ^ 0xa) << kBits;
    }
    uint32_t nbytes() const { return length & ((1u << kBits) - 1); }
    bool sound() const { return length == packed(nbytes()); }
};

struct ChainHeader {
    ObjectHeader object;
    uint64_t first_block, last_block;  // References
    uint64_t first, last;              // ChainPlace in them
};

class RecordChain {
public:
    static constexpr uint64_t kRecordBytesMax = (1ull << ChainRecord::kBits) - 1;

    // What its records are to its users is noted in it; an older one has been made for something of its own.
    RecordChain(Heap& heap, std::string_view name, ObjectKind kind, ValueType records = ValueType::kBytes);
    static uint64_t make(Heap& heap, ObjectKind kind, ValueType records);  // within a transaction
    ValueType records() const { return static_cast<ValueType>(header().object.seed); }

    Heap& heap() const { return heap_; }
    uint64_t address() const { return address_; }
    uint64_t first_index() const;
    uint64_t end_index() const;
    uint64_t size() const;

    // All of them or none. The index of the first.
    uint64_t append(std::span<const std::string_view> records);
    uint64_t append(std::string_view record) { return append({&record, 1}); }
    // Drops all before `index`, damaged ones too; how many those were.
    uint64_t drop_before(uint64_t index);
    void destroy();  // frees everything, within a transaction

    // Good until its record is dropped: one step from a given index to the end. Throws CorruptHeap if the
    // next one is damaged: a cursor that begins behind it goes on.
    class Cursor {
    public:
        Cursor(const RecordChain& chain, uint64_t index);
        std::optional<std::string_view> next();
        uint64_t index() const { return index_; }

    private:
        friend class RecordChain;
        bool pass_block(uint64_t wanted);
        const ChainRecord& pass();
        const ChainRecord& record() const;

        const RecordChain& chain_;
        const ChainBlock* block_;
        uint64_t index_, words_, blocks_left_;
    };
    void for_each_block(const std::function<void(uint64_t)>& visit) const;

private:
    ChainHeader& header() const { return *header_; }
    ChainBlock& block_at(uint64_t reference) const;
    ChainBlock& first_block() const { return block_at(header().first_block); }
    uint64_t blocks_max() const;
    ChainPlace place(uint64_t word, const ChainBlock& block) const;
    ChainPlace write(ChainBlock& block, ChainPlace at, std::string_view record);
    ChainBlock& add_block(const ChainBlock& last, uint64_t first_index, uint64_t nbytes_min);
    [[noreturn]] void raise_damaged(const char* what) const;

    Heap& heap_;
    std::string name_;
    uint64_t address_;
    ChainHeader* header_;
};

}  // namespace bequest
