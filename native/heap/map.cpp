#include "map.hpp"

#include <algorithm>
#include <bit>

#include "hash.hpp"

namespace bequest {

namespace {

constexpr uint64_t kValueBytesMax = UINT32_MAX;
constexpr uint64_t kFaceMask = 0xffff;

uint64_t tag_of(uint64_t hash) { return hash >> 48; }

// The power of two below it: buckets from there on have not been split in this round.
uint64_t round_of(uint64_t buckets) { return std::bit_floor(buckets); }

uint64_t bucket_of(uint64_t hash, uint64_t buckets) {
    const uint64_t round = round_of(buckets), bucket = hash & (2 * round - 1);
    return bucket < buckets ? bucket : bucket - round;
}

// How many positions a bucket's range has: half as many if it has been split in this round, or come from
// that.
uint64_t positions_of(uint64_t bucket, uint64_t buckets) {
    const uint64_t round = round_of(buckets);
    const bool is_divided = bucket >= round || bucket < buckets - round;
    return 1ull << (64 - std::countr_zero(round) - (is_divided ? 1 : 0));
}

uint32_t table_of(uint64_t bucket) {
    return bucket < kFirstBuckets ? 0 : static_cast<uint32_t>(std::bit_width(bucket / kFirstBuckets));
}
uint64_t first_of(uint32_t table) { return table == 0 ? 0 : kFirstBuckets << (table - 1); }
uint64_t table_bytes(uint32_t table) {
    return (table == 0 ? kFirstBuckets : first_of(table)) * sizeof(MapLine);
}

MapHeader empty_header(Heap& heap, const ObjectHeader& object) {
    const MapLine empty{};
    const uint64_t table = heap.alloc(table_bytes(0));
    for (uint64_t i = 0; i < kFirstBuckets; i++)
        heap.medium().copy(reinterpret_cast<void*>(table + i * sizeof empty), &empty, sizeof empty);
    return {object, checked(0), checked(kFirstBuckets), {Reference::make(table).bits}};
}

}  // namespace

uint64_t Map::make(Heap& heap, MapFace face) {
    const uint64_t address = heap.alloc(sizeof(MapHeader));
    const uint64_t seed = (folded_product(heap.id() | 1, address) & ~kFaceMask) |
                          static_cast<uint64_t>(face.key) << 8 | static_cast<uint64_t>(face.value);
    const MapHeader header = empty_header(heap, ObjectHeader::make(ObjectKind::kMap, seed));
    heap.medium().copy(reinterpret_cast<void*>(address), &header, sizeof header);
    return address;
}

Map::Map(Heap& heap, uint64_t address)
    : heap_(heap),
      address_(address),
      header_(&heap.at<MapHeader>(address)),
      changes_(heap.changes_of(address)) {
    header().object.check(ObjectKind::kMap, address);
}

MapFace Map::face() const {
    const uint64_t face = header().object.seed & kFaceMask;
    return {static_cast<ValueType>(face >> 8), static_cast<ValueType>(face & 0xff)};
}

uint64_t Map::size() const {
    if (!is_sound(header().count)) raise<CorruptHeap>("the Map at %#lx has a damaged count", address_);
    return header().count & kCheckedMask;
}

uint64_t Map::buckets() const {
    const uint64_t buckets = header().buckets & kCheckedMask;
    if (!is_sound(header().buckets) || buckets < kFirstBuckets || table_of(buckets) >= kMapTables)
        raise<CorruptHeap>("the Map at %#lx has a damaged count of buckets", address_);
    return buckets;
}

MapLine& Map::line_of_bucket(uint64_t bucket) const {
    const uint32_t table = table_of(bucket);
    return heap_.at<MapLine>(heap_.follow(header().tables[table]) +
                             (bucket - first_of(table)) * sizeof(MapLine));
}

// Not known to be what was put there, but for where it ends.
const MapEntry& Map::entry_at(uint64_t slot) const {
    const uint64_t address = heap_.follow(slot);
    const auto& entry = heap_.at<MapEntry>(address);
    heap_.require(address, sizeof entry + uint64_t{entry.key_bytes} + entry.value_bytes);
    return entry;
}

const MapEntry& Map::entry_in(uint64_t slot) const {
    const MapEntry& entry = entry_at(slot);
    require_sound(entry);
    return entry;
}

void Map::require_sound(const MapEntry& entry) const {
    if (entry.hash() != hash_of(entry.key(), header().object.seed))
        raise<CorruptHeap>("the Map at %#lx has a damaged entry", address_);
}

// --- looking up -----------------------------------------------------------------------------------

// Of the slots that led there, none is damaged, and might have been the one.
Map::Found Map::found_nothing(const Found& where, uint64_t hash) const {
    const MapLine* line = &line_of_bucket(bucket_of(hash, buckets()));
    for (; line != where.line; line = &line_at(line->next))
        for (uint64_t slot : line->slots) heap_.follow(slot);
    for (uint64_t slot : line->slots) heap_.follow(slot);
    return where;
}

Map::Found Map::find(std::string_view key, uint64_t hash) const {
    Found found{&line_of_bucket(bucket_of(hash, buckets())), nullptr, 0, nullptr};
    for (uint64_t lines = lines_max(); lines > 0; lines--) {
        for (found.slot = 0; found.slot < kSlotsPerLine; found.slot++) {
            const uint64_t slot = found.line->slots[found.slot];
            if (slot == 0) return found_nothing(found, hash);
            if (Reference{slot}.tag() != tag_of(hash)) continue;
            const MapEntry& entry = entry_at(slot);
            if (entry.hash() != hash || entry.key() != key) {
                require_sound(entry);
                continue;
            }
            found.entry = &entry;
            return found;
        }
        if (found.line->next == 0) return found_nothing(found, hash);
        found.before = found.line;
        found.line = &line_at(found.line->next);
    }
    raise<CorruptHeap>("the Map at %#lx has a bucket with more lines than there are entries for", address_);
}

std::optional<std::string_view> Map::get(std::string_view key) const {
    const Found found = find(key, hash_of(key, header().object.seed));
    if (!found.entry) return std::nullopt;
    return found.entry->value();
}

const MapEntry* Map::Cursor::next() {
    while (bucket_ < map_.buckets()) {
        const MapLine& line = line_ == 0 ? map_.line_of_bucket(bucket_) : map_.line_at(line_);
        if (slot_ < kSlotsPerLine && line.slots[slot_] != 0) return &map_.entry_in(line.slots[slot_++]);
        line_ = line.next;
        slot_ = 0;
        lines_ = line_ == 0 ? 0 : lines_ + 1;
        if (line_ == 0) bucket_++;
        if (lines_ > map_.lines_max())
            raise<CorruptHeap>("the Map at %#lx has a bucket that never ends", map_.address_);
    }
    return nullptr;
}

const MapEntry* Map::any() {
    for (const uint64_t from : {any_bucket_, uint64_t{0}}) {
        Cursor cursor(*this, from);
        const MapEntry* const found = cursor.next();
        any_bucket_ = found ? cursor.bucket() : 0;
        if (found || from == 0) return found;
    }
    return nullptr;
}

// The visitor may free the line.
template <class Visit>
void Map::for_each_line(uint64_t bucket, const Visit& visit) const {
    const MapLine* line = &line_of_bucket(bucket);
    for (uint64_t lines = lines_max(); lines > 0; lines--) {
        const uint64_t next = line->next;
        visit(*line);
        if (next == 0) return;
        line = &line_at(next);
    }
    raise<CorruptHeap>("the Map at %#lx has a bucket that never ends", address_);
}

template <class Visit>
void Map::for_each_entry(uint64_t bucket, const Visit& visit) const {
    for_each_line(bucket, [&](const MapLine& line) {
        for (uint64_t slot : line.slots)
            if (slot != 0) visit(entry_in(slot));
    });
}

// An empty bucket takes time as well: so it counts.
uint64_t Map::scan(uint64_t position, uint64_t at_least,
                   const std::function<void(const MapEntry&)>& show) const {
    const uint64_t count = buckets();
    for (uint64_t seen = 0; seen < at_least; seen++) {
        const uint64_t bucket = bucket_of(reversed(position), count);
        for_each_entry(bucket, [&](const MapEntry& entry) {
            if (reversed(entry.hash()) < position) return;  // an earlier step has shown it
            show(entry);
            seen++;
        });
        const uint64_t positions = positions_of(bucket, count);
        position = (position & ~(positions - 1)) + positions;
        if (position == 0) break;
    }
    return position;
}

// --- changing -------------------------------------------------------------------------------------

uint64_t Map::make_entry(std::string_view key, std::string_view value, uint64_t hash) {
    const MapEntry entry{hash ^ MapEntry::sizes(key.size(), value.size()), static_cast<uint32_t>(key.size()),
                         static_cast<uint32_t>(value.size())};
    const uint64_t address = heap_.alloc(sizeof entry + key.size() + value.size());
    auto* place = reinterpret_cast<char*>(address);
    heap_.medium().copy(place, &entry, sizeof entry);
    heap_.medium().copy(place + sizeof entry, key.data(), key.size());
    heap_.medium().copy(place + sizeof entry + key.size(), value.data(), value.size());
    return Reference::make(address, tag_of(hash)).bits;
}

uint64_t Map::make_line(const uint64_t* slots, uint64_t count, uint64_t next) {
    MapLine line{};
    std::copy_n(slots, count, line.slots);
    line.next = next;
    const uint64_t address = heap_.alloc(sizeof line);
    heap_.medium().copy(reinterpret_cast<void*>(address), &line, sizeof line);
    return Reference::make(address).bits;
}

void Map::insert(const Found& where, uint64_t slot) {
    note_change();
    const uint64_t count = checked(size() + 1);
    if (where.slot < kSlotsPerLine)
        heap_.set({{&where.line->slots[where.slot], slot}, {&header().count, count}});
    else
        heap_.set({{&where.line->next, make_line(&slot, 1, 0)}, {&header().count, count}});
}

bool Map::put(std::string_view key, std::string_view value) {
    if (key.size() > kValueBytesMax || value.size() > kValueBytesMax)
        raise<HeapMisuse>("a Map holds keys and values of at most 4 GiB");
    const uint64_t hash = hash_of(key, header().object.seed);
    const Found found = find(key, hash);
    Transaction transaction(heap_);
    const uint64_t slot = make_entry(key, value, hash);
    if (found.entry) {
        heap_.free_own(reinterpret_cast<uint64_t>(found.entry));
        heap_.set({{&found.line->slots[found.slot], slot}});
    } else {
        insert(found, slot);
        if (size() > buckets() * kEntriesPerBucket) split();
    }
    transaction.commit();
    return !found.entry;
}

// The last slot of the bucket fills the gap.
bool Map::erase(std::string_view key) {
    const Found found = find(key, hash_of(key, header().object.seed));
    if (!found.entry) return false;
    Found last = found;
    for (uint64_t lines = lines_max(); last.line->next != 0; lines--) {
        if (lines == 0) raise<CorruptHeap>("the Map at %#lx has a bucket that never ends", address_);
        last.before = last.line;
        last.line = &line_at(last.line->next);
        last.slot = 0;
    }
    while (last.slot + 1 < kSlotsPerLine && last.line->slots[last.slot + 1] != 0) last.slot++;
    Transaction transaction(heap_);
    note_change();
    heap_.free_own(reinterpret_cast<uint64_t>(found.entry));
    uint64_t* gap = &found.line->slots[found.slot];
    uint64_t* filler = &last.line->slots[last.slot];
    heap_.set({{gap, *filler}, {&header().count, checked(size() - 1)}});
    if (last.before && last.slot == 0) {
        heap_.set({{&last.before->next, 0}});
        heap_.free_own(reinterpret_cast<uint64_t>(last.line));
    } else {
        heap_.set({{filler, 0}});
    }
    transaction.commit();
    return true;
}

// --- one bucket more --------------------------------------------------------------------------------

// Its slots; its lines but the first are freed.
std::vector<uint64_t> Map::empty_bucket(uint64_t bucket) {
    std::vector<uint64_t> slots;
    const MapLine* const first = &line_of_bucket(bucket);
    for_each_line(bucket, [&](const MapLine& line) {
        for (uint64_t slot : line.slots)
            if (slot != 0) slots.push_back(slot);
        if (&line != first) heap_.free_own(reinterpret_cast<uint64_t>(&line));
    });
    return slots;
}

// Nobody sees a new one yet, so it needs no snapshot, but has to be flushed by us.
void Map::write_bucket(uint64_t bucket, bool is_new, const std::vector<uint64_t>& slots) {
    const uint64_t first = std::min<uint64_t>(slots.size(), kSlotsPerLine);
    uint64_t next = 0;
    for (uint64_t end = slots.size(); end > first;) {  // all but the last line are full
        const uint64_t start = first + (end - first - 1) / kSlotsPerLine * kSlotsPerLine;
        next = make_line(&slots[start], end - start, next);
        end = start;
    }
    MapLine line{};
    std::copy_n(slots.begin(), first, line.slots);
    line.next = next;
    MapLine& place = line_of_bucket(bucket);
    if (!is_new) heap_.snapshot(&place, sizeof place);
    heap_.medium().copy(&place, &line, sizeof line);
    if (is_new) heap_.medium().flush(&place, sizeof place);
}

void Map::split() {
    const uint64_t added = buckets();
    const uint32_t table = table_of(added);
    if (table >= kMapTables - 1) return;
    if (added == first_of(table))
        heap_.set({{&header().tables[table],
                    Reference::make(heap_.alloc(table_bytes(table), Heap::Flushed::kByUser)).bits}});
    const uint64_t divided = added - round_of(added);
    std::vector<uint64_t> kept, moved;
    for (uint64_t slot : empty_bucket(divided))
        (bucket_of(entry_in(slot).hash(), added + 1) == added ? moved : kept).push_back(slot);
    write_bucket(divided, false, kept);
    write_bucket(added, true, moved);
    heap_.set({{&header().buckets, checked(added + 1)}});
}

// --- all of it --------------------------------------------------------------------------------------

void Map::for_each_block(const std::function<void(uint64_t)>& visit) const {
    visit(address_);
    for (uint32_t table = 0; table <= table_of(buckets() - 1); table++)
        visit(heap_.follow(header().tables[table]));
    uint64_t entries = 0;
    for (uint64_t bucket = 0; bucket < buckets(); bucket++) {
        const MapLine* const first = &line_of_bucket(bucket);
        for_each_line(bucket, [&](const MapLine& line) {
            if (&line != first) visit(reinterpret_cast<uint64_t>(&line));
        });
        for_each_entry(bucket, [&](const MapEntry& entry) {
            entries++;
            visit(reinterpret_cast<uint64_t>(&entry));
        });
    }
    if (entries != size())
        raise<CorruptHeap>("the Map at %#lx has %lu entries and says that it has %lu", address_, entries,
                           size());
}

void Map::destroy() {
    note_change();
    std::vector<uint64_t> blocks;
    for_each_block([&](uint64_t block) { blocks.push_back(block); });
    for (uint64_t block : blocks) heap_.free_own(block);
}

void Map::clear() {
    Transaction transaction(heap_);
    note_change();
    std::vector<uint64_t> blocks;
    for_each_block([&](uint64_t block) {
        if (block != address_) blocks.push_back(block);
    });
    for (uint64_t block : blocks) heap_.free_own(block);
    const MapHeader fresh = empty_header(heap_, header().object);
    heap_.snapshot(header_, sizeof fresh);
    heap_.medium().copy(header_, &fresh, sizeof fresh);
    transaction.commit();
}

}  // namespace bequest
