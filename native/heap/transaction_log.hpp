// The log of the transaction under way: entries that say what was, or what shall be (theory:
// heap_layout.hpp).
//
// The log itself decides nothing about what belongs into it. It appends entries, says which are valid,
// carries them out in either direction, and commits by changing the phase word.
#pragma once

#include <functional>
#include <vector>

#include "heap_layout.hpp"
#include "medium.hpp"

namespace bequest {

struct LogArea {
    uint64_t address, nbytes;
};

// What the log must know of the heap around it.
struct LogHost {
    virtual ~LogHost() = default;
    virtual LogArea more_log(uint64_t nbytes_min) = 0;         // of memory that nobody else gets
    virtual bool can_hold_log(const LogArea& area) const = 0;  // for recovery: is it ours at all?
    virtual bool can_be_logged(uint64_t address, uint64_t nbytes) const = 0;
    virtual uint64_t heap_bytes() const = 0;  // no log is longer
};

class TransactionLog {
public:
    TransactionLog(Medium medium, uint64_t heap_id, HeapHeader& header, LogArea first, LogHost& host);

    // Goes to the beginning. The serial must have been raised since there was anything in it.
    void begin();
    bool is_empty() const { return entries_ == 0; }
    uint64_t entries() const { return entries_; }

    // Written, but not durable before `harden`.
    void append(EntryKind kind, const void* at, const void* data, uint64_t nbytes);
    // What was appended is durable from here on. That it was is noted for whoever finds it damaged.
    void harden() const {
        medium_.fence();
        medium_.store(header_.hardened, Hardened::make(phase().serial(), entries_).bits);
    }
    // At most once in a transaction for each word, as far as it remembers.
    void append_undo(const uint64_t& word) {
        if (remember(&word)) append(EntryKind::kUndo, &word, &word, sizeof word);
    }
    // What was noted so far does not do for what comes: it has a savepoint of its own.
    void forget_words() { generation_++; }

    void flush_places() const;       // of all undo entries: what has been written there
    void undo(uint64_t from_entry);  // puts back, last entry first
    void redo();                     // carries out, in order
    void mark_redo();                // commits a journal
    void raise_serial();             // commits a transaction, or ends one

    struct Recovery {
        bool rolled_back = false, rolled_forward = false;
        uint64_t entries = 0, nbytes = 0;
    };
    Recovery recover();

private:
    struct Word {
        const uint64_t* word;
        uint64_t generation;
    };
    bool remember(const uint64_t* word) {
        Word& place = words_[reinterpret_cast<uint64_t>(word) / 8 % kWordsRemembered];
        if (place.word == word && place.generation == generation_) return false;
        place = {word, generation_};
        return true;
    }
    void append_piece(EntryKind kind, uint64_t address, const void* data, uint64_t nbytes);
    void move_on(uint64_t nbytes);
    const LogEntry* valid_entry(const LogArea& area, uint64_t offset, uint64_t serial) const;
    std::vector<const LogEntry*> read() const;
    void require_hardened(uint64_t found) const;
    void put(const LogEntry& entry);
    Phase phase() const { return {header_.phase}; }

    static constexpr uint64_t kWordsRemembered = 64;

    Medium medium_;
    uint32_t seed_;
    HeapHeader& header_;
    LogArea first_;
    LogHost& host_;
    LogArea area_ = first_;
    uint64_t place_ = 0;  // in the area
    uint64_t entries_ = 0;
    uint64_t generation_ = 0;
    Word words_[kWordsRemembered] = {};
};

}  // namespace bequest
