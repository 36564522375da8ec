// Map: bytes to bytes, in a heap.
//
// Theory of operation. Linear hashing (Litwin, VLDB 1980): there are `buckets` buckets, and whenever entries
// become too many for them, one more is made, and the one whose entries it shares is split. So no operation
// takes long, however large the map is. A bucket is a cache line: seven slots and the address of the next
// line for what does not fit. A slot has the address of an entry and 16 bits of its hash; slots are filled
// from the front, and all lines but a bucket's last are full. An entry is one allocation, and never changes:
// another value is another entry (a shadow copy, as is everything that nobody can see yet), and one slot is
// swung.
//
// Damage is looked for where nothing is found: before a key is said not to be there, the check bits of each
// slot that was passed are looked at, and an entry that is not the one though its slot says so must have the
// hash of its own key. What is found is the entry that was put there, for its key was compared, and its sizes
// are in what stands for its hash.
//
// Buckets lie in tables, each as large as all before it, so that they never move. A bucket's line is written
// when the bucket comes into use.
//
// Every operation is one transaction, nested in the one under way if there is one.
#pragma once

#include <functional>

#include "object.hpp"

namespace bequest {

constexpr uint64_t kSlotsPerLine = 7;
constexpr uint64_t kFirstBuckets = 8;
constexpr uint64_t kEntriesPerBucket = 5;  // on the average, before there is one bucket more
constexpr uint32_t kMapTables = 44;

struct MapLine {
    uint64_t slots[kSlotsPerLine];  // References to entries, with 16 bits of the hash
    uint64_t next;                  // a Reference
};

struct MapHeader {
    ObjectHeader object;          // its seed is the hash's; the lowest 16 bits are the face
    uint64_t count;               // checked
    uint64_t buckets;             // checked
    uint64_t tables[kMapTables];  // References
};

struct MapEntry {   // then the key, then the value
    uint64_t seal;  // the hash of the key, and both sizes
    uint32_t key_bytes, value_bytes;

    static constexpr uint64_t sizes(uint64_t key_bytes, uint64_t value_bytes) {
        return (key_bytes << 32 | value_bytes) * 0x9e3779b97f4a7c15;  // odd: other sizes, another product
    }
    uint64_t hash() const { return seal ^ sizes(key_bytes, value_bytes); }
    std::string_view key() const { return {reinterpret_cast<const char*>(this + 1), key_bytes}; }
    std::string_view value() const {
        return {reinterpret_cast<const char*>(this + 1) + key_bytes, value_bytes};
    }
};

// What a map's keys and values are to its users: noted in the map, which itself knows bytes only.
struct MapFace {
    ValueType key = ValueType::kBytes, value = ValueType::kBytes;
    bool operator==(const MapFace&) const = default;
};

class Map {
public:
    Map(Heap& heap, std::string_view name, MapFace face = {})  // an older map has a face of its own
        : Map(heap, find_or_make(heap, name, ObjectKind::kMap, [face](Heap& h) { return make(h, face); })) {}
    Map(Heap& heap, uint64_t address);
    static uint64_t make(Heap& heap, MapFace face = {});  // within a transaction

    Heap& heap() const { return heap_; }
    uint64_t address() const { return address_; }
    MapFace face() const;
    uint64_t size() const;
    // Good until the next change. Nothing if there is no such key.
    std::optional<std::string_view> get(std::string_view key) const;
    bool put(std::string_view key, std::string_view value);  // true if the key is new
    bool erase(std::string_view key);                        // false if there was none
    void clear();
    void destroy();  // frees everything, within a transaction; the root is the caller's to remove

    // An iterator that knows when keys have come or gone, as a dict's does: then it must not go on.
    class Cursor {
    public:
        explicit Cursor(const Map& map, uint64_t bucket = 0)
            : map_(map), seen_(map.changes_->count), bucket_(bucket) {}
        const MapEntry* next();  // nullptr at the end
        bool is_stale() const { return map_.changes_->count != seen_; }
        uint64_t bucket() const { return bucket_; }

    private:
        const Map& map_;
        uint64_t seen_, bucket_, line_ = 0, slot_ = 0, lines_ = 0;
    };
    // Some entry, or nullptr: the first from where the last was found. So to take all, one by one, is to go
    // over the map once.
    const MapEntry* any();
    // Going over the map in steps, whatever happens between them: a step shows the entries of some buckets,
    // and returns from where the next one goes on. It begins with 0, and returns 0 at the end.
    //
    // A position is a hash with its bits reversed. A bucket holds the entries whose hashes end in the same
    // bits, which is a range of positions, and a step shows whole ranges. Buckets are split and joined again
    // (by a transaction that fails, or clear), but an entry's position stays. So each that is there
    // throughout is shown once. The same holds for another owner of the heap.
    uint64_t scan(uint64_t position, uint64_t at_least,
                  const std::function<void(const MapEntry&)>& show) const;
    // Every allocation of this map, for whoever looks for leaks.
    void for_each_block(const std::function<void(uint64_t)>& visit) const;

private:
    struct Found {
        MapLine *line, *before;  // and the line that leads to it
        uint64_t slot;
        const MapEntry* entry;  // nullptr: it is not there, and the slot is where it would go
    };
    MapHeader& header() const { return *header_; }
    uint64_t buckets() const;
    uint64_t lines_max() const { return size() / kSlotsPerLine + 2; }
    MapLine& line_of_bucket(uint64_t bucket) const;
    MapLine& line_at(uint64_t reference) const { return heap_.at<MapLine>(heap_.follow(reference)); }
    const MapEntry& entry_at(uint64_t slot) const;
    const MapEntry& entry_in(uint64_t slot) const;
    void require_sound(const MapEntry& entry) const;
    Found found_nothing(const Found& where, uint64_t hash) const;
    Found find(std::string_view key, uint64_t hash) const;
    template <class Visit>
    void for_each_line(uint64_t bucket, const Visit& visit) const;
    template <class Visit>
    void for_each_entry(uint64_t bucket, const Visit& visit) const;
    uint64_t make_entry(std::string_view key, std::string_view value, uint64_t hash);
    void insert(const Found& where, uint64_t slot);
    void note_change() { *changes_ = {changes_->count + 1, heap_.level()}; }
    void split();
    void write_bucket(uint64_t bucket, bool is_new, const std::vector<uint64_t>& slots);
    std::vector<uint64_t> empty_bucket(uint64_t bucket);
    uint64_t make_line(const uint64_t* slots, uint64_t count, uint64_t next);

    Heap& heap_;
    uint64_t address_;
    MapHeader* header_;
    std::shared_ptr<Changes> changes_;  // of its keys, not of their values
    uint64_t any_bucket_ = 0;
};

}  // namespace bequest
