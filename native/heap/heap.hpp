// A crash-consistent heap: named roots, allocation, and the three ways to change what is in it.
//
// Theory of operation: heap_layout.hpp. What users choose between:
//
//   Transaction  undo log. Says which bytes it will change, then changes them in place and reads what it has
//                written. For changes whose extent shows only as they are made, and for those that span
//                several objects. Nested, each level can fail by itself; all of it counts when the outermost
//                commits.
//   Journal      redo log. Collects what shall be written, and writes it when it commits: four waits for
//   memory
//                however many places there are, where a transaction waits once more for each snapshot. For
//                changes that are known beforehand, of scattered words.
//   publish      shadow copy. What is new was built aside; one word is changed. The cheapest, where one word
//   is
//                all that has to change.
//
// As in PMDK's libpmemobj, memory allocated within a transaction needs no snapshot, is nobody's if the
// transaction fails, and what is freed within it is kept until it commits. Different from there, addresses
// are plain, and an inner transaction that fails undoes what it did and no more.
#pragma once

#include <initializer_list>
#include <memory>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "allocator.hpp"
#include "heap_errors.hpp"
#include "transaction_log.hpp"

namespace bequest {

struct HeapMemory {
    uint64_t address, nbytes;
};

struct HeapOptions {
    Medium::Backing backing = Medium::Backing::kRam;
    // Another region of this owner, of at least so many bytes, and so many are wished for.
    std::function<std::optional<HeapMemory>(uint64_t nbytes_min, uint64_t nbytes_wished)> grow = {};
    // Is all of this memory ours? Asked for each segment but the first before it is touched.
    std::function<bool(const HeapMemory&)> is_ours = {};
};

// How often an object has changed in a way that iterators mind. Memory of this process, shared by all who
// have opened the object in this heap; what is undone counts as a change, too.
struct Changes {
    uint64_t count = 0;
    uint64_t level = 0;  // of the transaction of the last one
};

struct Root {
    std::string name;
    uint64_t address, kind;
    uint64_t record;  // where its record lies
};

class Heap : private LogHost {
public:
    using Recovery = TransactionLog::Recovery;
    struct Change {
        uint64_t* word;
        uint64_t value;
    };

    static std::unique_ptr<Heap> create(const HeapMemory& memory, uint64_t heap_id, HeapOptions options = {});
    static std::unique_ptr<Heap> open(const HeapMemory& memory, HeapOptions options = {});
    ~Heap() override;
    Heap(const Heap&) = delete;

    const Recovery& recovery() const { return recovery_; }
    uint64_t address() const { return first().header().address; }
    uint64_t id() const { return first().header().heap_id; }
    uint64_t nbytes() const { return heap_bytes(); }
    uint64_t free_bytes() const { return allocator_.free_bytes(); }
    std::vector<HeapMemory> segments() const;
    void extend(const HeapMemory& memory);  // by another region of this owner
    const Medium& medium() const { return medium_; }

    // --- roots --------------------------------------------------------------------------------
    std::optional<Root> find_root(std::string_view name) const;
    void set_root(std::string_view name, uint64_t address, uint64_t kind);
    bool remove_root(std::string_view name);
    std::vector<Root> roots() const;
    // Another number whenever a root may have become another one: who remembers one looks again then.
    uint64_t roots_generation() const { return roots_generation_; }
    std::shared_ptr<Changes> changes_of(uint64_t address);  // of the object that lies there

    // --- what is read from the heap is checked before it is followed -----------------------------
    static uint64_t follow(uint64_t reference) {  // its address, or 0
        if (!Reference{reference}.sound()) raise_unsound(reference);
        return Reference{reference}.address();
    }
    void require(uint64_t address, uint64_t nbytes) const {
        if (!contains(address, nbytes)) raise_stray(address, nbytes);
    }
    bool contains(uint64_t address, uint64_t nbytes) const {
        return first().contains(address, nbytes) ||
               (segments_.size() > 1 && allocator_.contains(address, nbytes));
    }
    template <class T>
    T& at(uint64_t address, uint64_t nbytes = sizeof(T)) const {
        if (address % alignof(T) != 0) raise_stray(address, nbytes);
        require(address, nbytes);
        return *reinterpret_cast<T*>(address);
    }
    uint64_t nbytes_of(uint64_t address) { return allocator_.find(address).nbytes; }
    void for_each_block(const std::function<void(const Block&)>& visit) const { allocator_.for_each(visit); }

    // --- changes --------------------------------------------------------------------------------
    // Each level has a number that no other has had: whoever ends it later than it should is not mistaken for
    // the one of another that is as deep.
    uint64_t begin();
    void commit();  // of the level that was begun last
    void abort();
    void abort_or_give_up() noexcept;
    void abort_through(uint64_t level) noexcept;  // with what has begun within it; nothing, if it has ended
    // What was under way is left as it is, for the next opening; nothing can be begun here any more.
    void give_up();
    uint64_t depth() const { return levels_.size(); }
    uint64_t level() const { return levels_.empty() ? 0 : levels_.back().number; }
    bool is_under_way(uint64_t level) const;
    void require_whole() const;
    void snapshot(const void* at, uint64_t nbytes);
    void set(std::initializer_list<Change> changes);
    // Neither zeroed nor, before the commit, anybody's. It is flushed whole by the commit, or by the user in
    // part.
    enum class Flushed { kByCommit, kByUser };
    uint64_t alloc(uint64_t nbytes, Flushed flushed = Flushed::kByCommit);
    void free(uint64_t address);
    // The same for an object's own memory: that it does not begin an allocation is damage then, not misuse.
    void free_own(uint64_t address);
    // One word, for which everything has been flushed: at once, or with the transaction under way.
    void publish(uint64_t& word, uint64_t value);

private:
    friend class Journal;
    struct Level {  // what its abort goes back to
        uint64_t number, entries, reservations, releases;
    };
    struct Reservation {
        Block block;
        bool dropped;  // released again by the transaction that made it
        bool flushed_by_user;
    };
    struct Release {
        Block block;
        uint64_t reservation;  // that it drops, or kNone
        bool is_own;
    };
    static constexpr uint64_t kNone = UINT64_MAX;

    Heap(const HeapMemory& memory, HeapOptions options);
    Segment& first() const { return *segments_[0]; }
    HeapHeader& header() const { return *header_; }
    void attach_others();
    void recover();
    bool grow(uint64_t nbytes);
    // Where a name's record is noted: the word that leads to it.
    using RootIndex = std::unordered_map<std::string, uint64_t*>;
    const RootIndex& root_index() const;
    void index_root(const RootRecord& record, uint64_t& link);
    RootRecord* record_of(std::string_view name) const;
    RootRecord& record_at(uint64_t reference) const;
    [[noreturn]] static void raise_unsound(uint64_t reference);
    [[noreturn]] static void raise_stray(uint64_t address, uint64_t nbytes);

    const std::vector<Change>& word_changes();
    void release(uint64_t address, bool is_own);
    uint64_t reservation_at(uint64_t address);
    void flush_reservations() const;
    void commit_outermost();
    void commit_journal(const std::vector<std::pair<uint64_t, std::vector<unsigned char>>>& writes);
    void settle(bool committed);

    LogArea more_log(uint64_t nbytes_min) override;
    bool can_hold_log(const LogArea& area) const override;
    bool can_be_logged(uint64_t address, uint64_t nbytes) const override;
    uint64_t heap_bytes() const override;

    Medium medium_;
    HeapOptions options_;
    std::vector<std::unique_ptr<Segment>> segments_;
    HeapHeader* header_;
    Allocator allocator_;
    std::optional<TransactionLog> log_;
    Recovery recovery_;
    std::vector<Level> levels_;
    uint64_t levels_begun_ = 0;
    std::vector<Reservation> reservations_;
    std::unordered_map<uint64_t, uint64_t> reservation_places_;  // by address: of as many as it has
    std::vector<Release> releases_;
    std::vector<Block> log_areas_;
    std::vector<Change> changes_;                  // kept, to save an allocation in each commit
    mutable std::optional<RootIndex> root_index_;  // made when it is asked for
    std::unordered_map<uint64_t, std::shared_ptr<Changes>> object_changes_;
    uint64_t roots_generation_ = 1;
    bool roots_changed_ = false;  // in the transaction under way
    bool broken_ = false;
};

// A transaction for as long as this lives: aborted, unless it was committed.
class Transaction {
public:
    explicit Transaction(Heap& heap) : heap_(heap) { heap_.begin(); }
    ~Transaction() {
        if (open_) heap_.abort_or_give_up();
    }
    Transaction(const Transaction&) = delete;
    void commit() {
        heap_.commit();
        open_ = false;
    }

private:
    Heap& heap_;
    bool open_ = true;
};

// What shall be written, all of it or nothing. Reading back shows it only after the commit.
class Journal {
public:
    explicit Journal(Heap& heap) : heap_(heap) { heap_.begin(); }
    ~Journal() {
        if (open_) heap_.abort_or_give_up();
    }
    Journal(const Journal&) = delete;
    void write(void* at, const void* data, uint64_t nbytes);
    void set(uint64_t& word, uint64_t value) { write(&word, &value, sizeof value); }
    uint64_t alloc(uint64_t nbytes) { return heap_.alloc(nbytes); }
    void free(uint64_t address) { heap_.free(address); }
    void commit();
    // From here on its level, of this number, is the caller's to end, and the heap may go before the journal.
    uint64_t release() {
        open_ = false;
        return heap_.level();
    }

private:
    Heap& heap_;
    bool open_ = true;
    std::vector<std::pair<uint64_t, std::vector<unsigned char>>> writes_;
};

}  // namespace bequest
