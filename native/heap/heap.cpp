#include "heap.hpp"

#include <algorithm>
#include <cassert>

#include "checksum.hpp"

namespace bequest {

namespace {

constexpr uint64_t kSegmentExtraBytes = 32 << 10;  // headers, and what rounding costs

uint64_t address_of(const void* place) { return reinterpret_cast<uint64_t>(place); }

void require_memory(const HeapMemory& memory) {
    if (memory.address % kLineBytes != 0 || memory.nbytes < kHeapBytesMin || memory.nbytes > kHeapBytesMax)
        raise<HeapMisuse>("a heap needs at least %lu bytes, aligned to %lu; these are %lu at %#lx",
                          kHeapBytesMin, kLineBytes, memory.nbytes, memory.address);
}

}  // namespace

// --- making and opening ---------------------------------------------------------------------------

std::unique_ptr<Heap> Heap::create(const HeapMemory& memory, uint64_t heap_id, HeapOptions options) {
    require_memory(memory);
    const Medium medium(options.backing);
    Segment::format(medium, memory.address, memory.nbytes, heap_id, 0);
    HeapHeader header{};
    header.phase = Phase::make(1, false).bits;
    header.hardened = Hardened::make(0, 0).bits;
    header.segments_used = checked(1);
    header.root_count = checked(0);
    header.segments[0] = {memory.address, memory.nbytes};
    auto* there = reinterpret_cast<void*>(memory.address + kHeapHeaderOffset);
    medium.copy(there, &header, sizeof header);
    medium.flush(there, sizeof header);
    Segment::seal(medium, memory.address);
    return open(memory, std::move(options));
}

std::unique_ptr<Heap> Heap::open(const HeapMemory& memory, HeapOptions options) {
    require_memory(memory);
    std::unique_ptr<Heap> heap(new Heap(memory, std::move(options)));
    heap->attach_others();
    heap->recover();
    return heap;
}

Heap::Heap(const HeapMemory& memory, HeapOptions options)
    : medium_(options.backing),
      options_(std::move(options)),
      header_(reinterpret_cast<HeapHeader*>(memory.address + kHeapHeaderOffset)),
      allocator_([this](uint64_t nbytes) { return grow(nbytes); }) {
    segments_.push_back(std::make_unique<Segment>(medium_, memory.address, memory.nbytes));
    if (first().header().index != 0)
        raise<CorruptHeap>("at %#lx lies segment %u of a heap, and a heap is opened by its first",
                           memory.address, first().header().index);
    allocator_.add(segments_[0].get());
}

Heap::~Heap() = default;

void Heap::attach_others() {
    const uint64_t used = header().segments_used;
    const uint64_t count = used & kCheckedMask;
    if (!is_sound(used) || count == 0 || count > kSegmentsMax)
        raise<CorruptHeap>("the heap at %#lx has a damaged count of segments", address());
    for (uint64_t i = 1; i < count; i++) {
        const SegmentPlace place = header().segments[i];
        if (!options_.is_ours || !options_.is_ours({place.address, place.nbytes}))
            raise<CorruptHeap>(
                "segment %lu of the heap at %#lx is not here: %lu bytes at %#lx belong to it; who opens a "
                "heap has all its regions, and handles of them (that of an estate: keep the estate)",
                i, address(), place.nbytes, place.address);
        segments_.push_back(std::make_unique<Segment>(medium_, place.address, place.nbytes));
        if (segments_[i]->header().heap_id != id() || segments_[i]->header().index != i)
            raise<CorruptHeap>("at %#lx lies another heap's memory, not segment %lu of the heap at %#lx",
                               place.address, i, address());
        allocator_.add(segments_[i].get());
    }
}

void Heap::recover() {
    const SegmentHeader& h = first().header();
    log_.emplace(medium_, id(), header(), LogArea{h.address + h.log_offset, h.log_bytes},
                 static_cast<LogHost&>(*this));
    recovery_ = log_->recover();
}

bool Heap::grow(uint64_t nbytes) {
    const uint64_t index = segments_.size();
    if (!options_.grow || index == kSegmentsMax) return false;
    if (nbytes > kHeapBytesMax / 2) return false;
    const uint64_t least = nbytes + nbytes / 128 + kSegmentExtraBytes;
    const auto memory = options_.grow(least, std::max(least, heap_bytes()));
    if (!memory) return false;
    extend(*memory);
    return true;
}

void Heap::extend(const HeapMemory& memory) {
    const uint64_t index = segments_.size();
    if (index == kSegmentsMax)
        raise<HeapMisuse>("this heap has %u regions, and can have no more", kSegmentsMax);
    require_memory(memory);
    Segment::format(medium_, memory.address, memory.nbytes, id(), static_cast<uint32_t>(index));
    Segment::seal(medium_, memory.address);
    const SegmentPlace place{memory.address, memory.nbytes};
    medium_.copy(&header().segments[index], &place, sizeof place);
    medium_.persist(&header().segments[index], sizeof place);
    segments_.push_back(std::make_unique<Segment>(medium_, memory.address, memory.nbytes));
    medium_.commit(header().segments_used, checked(index + 1));
    allocator_.add(segments_.back().get());
}

std::vector<HeapMemory> Heap::segments() const {
    std::vector<HeapMemory> all;
    for (const auto& segment : segments_)
        all.push_back({segment->header().address, segment->header().nbytes});
    return all;
}

void Heap::raise_unsound(uint64_t reference) {
    raise<CorruptHeap>("a word of the heap that leads to another place of it is damaged: %#lx", reference);
}

void Heap::raise_stray(uint64_t address, uint64_t nbytes) {
    raise<CorruptHeap>("the heap refers to %lu bytes at %#lx, which are not in it", nbytes, address);
}

// --- what the log wants to know --------------------------------------------------------------------

uint64_t Heap::heap_bytes() const {
    uint64_t bytes = 0;
    for (const auto& segment : segments_) bytes += segment->header().nbytes;
    return bytes;
}

// Free chunks, which stay free as far as the heap knows: when the transaction ends, they are given back.
LogArea Heap::more_log(uint64_t nbytes_min) {
    const uint64_t wished = std::max(nbytes_min, first().header().log_bytes);
    const Block block = allocator_.reserve_chunks(wished);
    log_areas_.push_back(block);
    return {block.address, block.nbytes};
}

bool Heap::can_hold_log(const LogArea& area) const {
    return area.address % kUnitAlign == 0 && allocator_.contains(area.address, area.nbytes);
}

bool Heap::can_be_logged(uint64_t address, uint64_t nbytes) const {
    return std::any_of(segments_.begin(), segments_.end(),
                       [&](const auto& segment) { return segment->can_be_logged(address, nbytes); });
}

// --- changes --------------------------------------------------------------------------------------

void Heap::require_whole() const {
    if (broken_)
        raise<CorruptHeap>(
            "the heap at %#lx was damaged in the middle of a transaction: open it anew, which undoes "
            "that, or says what is wrong",
            address());
}

uint64_t Heap::begin() {
    require_whole();
    if (levels_.empty())
        log_->begin();
    else
        log_->forget_words();
    levels_.push_back({++levels_begun_, log_->entries(), reservations_.size(), releases_.size()});
    return levels_begun_;
}

void Heap::commit() {
    if (levels_.empty()) raise<HeapMisuse>("there is no transaction to commit");
    if (levels_.size() == 1) commit_outermost();
    levels_.pop_back();
}

// What was reserved stays so until the outermost transaction ends: the log speaks of it, perhaps.
void Heap::abort() {
    if (levels_.empty()) raise<HeapMisuse>("there is no transaction to abort");
    const Level level = levels_.back();
    if (log_->entries() > level.entries) log_->undo(level.entries);
    if (roots_changed_) {
        roots_generation_++;
        root_index_.reset();
    }
    for (auto& [address, changes] : object_changes_)
        if (changes->level >= level.number) changes->count++;
    while (releases_.size() > level.releases) {
        if (releases_.back().reservation != kNone)
            reservations_[releases_.back().reservation].dropped = false;
        releases_.pop_back();
    }
    for (uint64_t i = level.reservations; i < reservations_.size(); i++) reservations_[i].dropped = true;
    levels_.pop_back();
    if (!levels_.empty()) return;
    if (!log_->is_empty()) log_->raise_serial();
    settle(false);
}

void Heap::abort_or_give_up() noexcept {
    try {
        if (!broken_) return abort();
    } catch (...) {
    }
    give_up();
}

void Heap::abort_through(uint64_t level) noexcept {
    while (is_under_way(level)) abort_or_give_up();
}

bool Heap::is_under_way(uint64_t level) const {
    return std::any_of(levels_.begin(), levels_.end(),
                       [&](const Level& begun) { return begun.number == level; });
}

void Heap::give_up() {
    broken_ = true;
    levels_.clear();
    reservations_.clear();
    reservation_places_.clear();
    releases_.clear();
    log_areas_.clear();
    root_index_.reset();
}

void Heap::snapshot(const void* at, uint64_t nbytes) {
    if (levels_.empty()) raise<HeapMisuse>("a snapshot is taken within a transaction");
    if (!can_be_logged(address_of(at), nbytes))
        raise<HeapMisuse>("%lu bytes at %#lx are not in this heap", nbytes, address_of(at));
    log_->append(EntryKind::kUndo, at, at, nbytes);
    log_->harden();
}

void Heap::set(std::initializer_list<Change> changes) {
    assert(!levels_.empty() && "words are changed within a transaction");
    for (const Change& change : changes) log_->append_undo(*change.word);
    log_->harden();
    for (const Change& change : changes) medium_.store(*change.word, change.value);
}

uint64_t Heap::alloc(uint64_t nbytes, Flushed flushed) {
    if (levels_.empty()) raise<HeapMisuse>("memory is allocated within a transaction");
    reservations_.push_back({allocator_.reserve(nbytes), false, flushed == Flushed::kByUser});
    return reservations_.back().block.address;
}

void Heap::free(uint64_t address) { release(address, false); }

void Heap::free_own(uint64_t address) {
    try {
        release(address, true);
    } catch (const HeapMisuse& stray) {
        throw CorruptHeap(stray.what());
    }
}

void Heap::release(uint64_t address, bool is_own) {
    if (levels_.empty()) raise<HeapMisuse>("memory is freed within a transaction");
    const Block block = allocator_.find(address);
    uint64_t reservation = kNone;
    if (!block.is_taken(*block.word)) {
        reservation = reservation_at(address);
        if (reservation == kNone) raise<HeapMisuse>("what lay at %#lx has been freed before", address);
        reservations_[reservation].dropped = true;
    }
    releases_.push_back({block, reservation, is_own});
}

// Of the transaction under way, if it has one there and has not dropped it. No address is reserved twice in
// one. The last few are found by looking: most transactions have no more.
uint64_t Heap::reservation_at(uint64_t address) {
    constexpr uint64_t kFew = 16;
    const uint64_t count = reservations_.size();
    const auto standing = [&](uint64_t i) { return reservations_[i].dropped ? kNone : i; };
    for (uint64_t i = count; i > 0 && count - i < kFew; i--)
        if (reservations_[i - 1].block.address == address) return standing(i - 1);
    for (uint64_t i = reservation_places_.size(); i < count; i++)
        reservation_places_[reservations_[i].block.address] = i;
    const auto place = reservation_places_.find(address);
    return place == reservation_places_.end() ? kNone : standing(place->second);
}

void Heap::publish(uint64_t& word, uint64_t value) {
    if (!levels_.empty()) return set({{&word, value}});
    require_whole();
    medium_.fence();
    medium_.commit(word, value);
}

// What the table's and the bitmaps' words become, each word once. Few are found again by looking, many by
// hash.
const std::vector<Heap::Change>& Heap::word_changes() {
    constexpr size_t kFew = 16;
    changes_.clear();
    std::unordered_map<const uint64_t*, size_t> places;
    const auto value_of = [&](uint64_t* word) -> uint64_t& {
        if (changes_.size() <= kFew)
            for (Change& change : changes_)
                if (change.word == word) return change.value;
        if (changes_.size() == kFew)
            for (size_t i = 0; i < kFew; i++) places[changes_[i].word] = i;
        if (changes_.size() >= kFew)
            if (const auto [place, is_new] = places.try_emplace(word, changes_.size()); !is_new)
                return changes_[place->second].value;
        if (!is_sound(*word))
            raise<CorruptHeap>("the word at %p, which says what is in use, is damaged",
                               static_cast<void*>(word));
        changes_.push_back({word, *word});
        return changes_.back().value;
    };
    for (const Reservation& made : reservations_) {
        if (made.dropped) continue;
        uint64_t& value = value_of(made.block.word);
        value = made.block.taken(value);
    }
    for (const Release& release : releases_) {
        if (release.reservation != kNone) continue;
        uint64_t& value = value_of(release.block.word);
        if (!release.block.is_taken(value)) {
            if (release.is_own)
                raise<CorruptHeap>("two places of the heap refer to what lies at %#lx",
                                   release.block.address);
            raise<HeapMisuse>("what lies at %#lx is freed twice", release.block.address);
        }
        value = release.block.freed(value);
    }
    return changes_;
}

void Heap::flush_reservations() const {
    if (!medium_.is_durable()) return;
    for (const Reservation& made : reservations_)
        if (!made.dropped && !made.flushed_by_user)
            medium_.flush(reinterpret_cast<const void*>(made.block.address), made.block.nbytes);
}

void Heap::commit_outermost() {
    const std::vector<Change>& changes = word_changes();
    for (const Change& change : changes)
        log_->append(EntryKind::kUndo, change.word, change.word, sizeof(uint64_t));
    if (!changes.empty()) log_->harden();
    for (const Change& change : changes) medium_.store(*change.word, change.value);
    if (!log_->is_empty()) {
        log_->flush_places();
        flush_reservations();
        medium_.fence();
        log_->raise_serial();
    }
    settle(true);
}

// From here on nobody else's claim stands in the way of what was released, or reserved in vain.
void Heap::settle(bool committed) {
    allocator_.settle();
    roots_changed_ = false;
    if (committed)
        for (const Release& release : releases_)
            if (release.reservation == kNone) allocator_.release(release.block);
    for (const Reservation& made : reservations_)
        if (!committed || made.dropped) allocator_.release(made.block);
    for (const Block& area : log_areas_) allocator_.release(area);
    reservations_.clear();
    reservation_places_.clear();
    releases_.clear();
    log_areas_.clear();
}

void Journal::write(void* at, const void* data, uint64_t nbytes) {
    if (!heap_.can_be_logged(address_of(at), nbytes))
        raise<HeapMisuse>("%lu bytes at %#lx are not in this heap", nbytes, address_of(at));
    const auto* bytes = static_cast<const unsigned char*>(data);
    writes_.push_back({address_of(at), {bytes, bytes + nbytes}});
}

void Journal::commit() {
    if (heap_.depth() > 1) {  // part of a transaction: which can still fail, so it must be undone
        for (const auto& [address, data] : writes_) {
            heap_.snapshot(reinterpret_cast<void*>(address), data.size());
            heap_.medium_.copy(reinterpret_cast<void*>(address), data.data(), data.size());
        }
        heap_.commit();
    } else {
        heap_.commit_journal(writes_);
        heap_.levels_.pop_back();
    }
    open_ = false;
}

void Heap::commit_journal(const std::vector<std::pair<uint64_t, std::vector<unsigned char>>>& writes) {
    if (!log_->is_empty())
        raise<HeapMisuse>("a journal and snapshots do not go together: nest a transaction in it");
    for (const auto& [address, data] : writes)
        log_->append(EntryKind::kRedo, reinterpret_cast<void*>(address), data.data(), data.size());
    for (const Change& change : word_changes())
        log_->append(EntryKind::kRedo, change.word, &change.value, sizeof change.value);
    if (!log_->is_empty()) {
        log_->append(EntryKind::kRedoEnd, nullptr, nullptr, 0);
        flush_reservations();
        log_->harden();
        log_->mark_redo();
        broken_ = true;  // until it is carried out, which only memory that goes bad can prevent
        log_->redo();
        log_->raise_serial();
        broken_ = false;
    }
    settle(true);
}

// --- roots ----------------------------------------------------------------------------------------

namespace {

std::string_view name_of(const RootRecord& record) {
    return {reinterpret_cast<const char*>(&record + 1), record.name_bytes};
}

uint32_t crc_of(const RootRecord& record, std::string_view name) {
    const uint32_t crc =
        crc32c_more(~0u, &record.address, offsetof(RootRecord, crc) - offsetof(RootRecord, address));
    return ~crc32c_more(crc, name.data(), name.size());
}

}  // namespace

RootRecord& Heap::record_at(uint64_t reference) const {
    const uint64_t place = follow(reference);
    auto& record = at<RootRecord>(place);
    require(place, sizeof record + record.name_bytes);
    if (record.crc != crc_of(record, name_of(record)))
        raise<CorruptHeap>("the root at %#lx of the heap at %#lx is damaged", place, address());
    return record;
}

// Nobody but this walks the list: it checks every record, and that there are as many as there should be. From
// then on whoever changes the list changes the index, and a transaction that fails has it made anew.
const Heap::RootIndex& Heap::root_index() const {
    if (root_index_) return *root_index_;
    const uint64_t count = header().root_count;
    if (!is_sound(count)) raise<CorruptHeap>("the heap at %#lx has a damaged count of roots", address());
    RootIndex index;
    uint64_t* link = &header().roots;
    for (uint64_t i = 0; i < (count & kCheckedMask); i++) {
        RootRecord& record = record_at(*link);
        index[std::string(name_of(record))] = link;
        link = &record.next;
    }
    if (*link != 0 || index.size() != (count & kCheckedMask))
        raise<CorruptHeap>("the heap at %#lx has other roots than it should", address());
    return root_index_.emplace(std::move(index));
}

// Within a transaction that changes the list.
void Heap::index_root(const RootRecord& record, uint64_t& link) {
    root_index_->insert_or_assign(std::string(name_of(record)), &link);
}

RootRecord* Heap::record_of(std::string_view name) const {
    const RootIndex& index = root_index();
    const auto found = index.find(std::string(name));
    return found == index.end() ? nullptr : &record_at(*found->second);
}

std::optional<Root> Heap::find_root(std::string_view name) const {
    const RootRecord* record = record_of(name);
    if (!record) return std::nullopt;
    return Root{std::string(name), record->address, record->kind, address_of(record)};
}

std::shared_ptr<Changes> Heap::changes_of(uint64_t address) {
    auto& changes = object_changes_[address];
    if (!changes) changes = std::make_shared<Changes>();
    return changes;
}

// A record is never changed: another one takes its place.
void Heap::set_root(std::string_view name, uint64_t address, uint64_t kind) {
    if (name.empty() || name.size() > kRootNameBytesMax)
        raise<HeapMisuse>("a name in a heap has 1 to %u bytes", kRootNameBytesMax);
    Transaction transaction(*this);
    remove_root(name);
    const uint64_t place = alloc(sizeof(RootRecord) + name.size());
    RootRecord record{header().roots, address, kind, static_cast<uint32_t>(name.size()), 0};
    record.crc = crc_of(record, name);
    medium_.copy(reinterpret_cast<void*>(place), &record, sizeof record);
    medium_.copy(reinterpret_cast<void*>(place + sizeof record), name.data(), name.size());
    const uint64_t count = (header().root_count & kCheckedMask) + 1;
    set({{&header().roots, Reference::make(place).bits}, {&header().root_count, checked(count)}});
    roots_changed_ = true;
    RootRecord& made = record_at(header().roots);
    if (made.next != 0) index_root(record_at(made.next), made.next);
    index_root(made, header().roots);
    transaction.commit();
}

bool Heap::remove_root(std::string_view name) {
    const RootRecord* record = record_of(name);
    if (!record) return false;
    uint64_t* const link = root_index_->at(std::string(name));
    Transaction transaction(*this);
    free_own(address_of(record));
    const uint64_t count = (header().root_count & kCheckedMask) - 1;
    set({{link, record->next}, {&header().root_count, checked(count)}});
    roots_changed_ = true;
    roots_generation_++;
    if (record->next != 0) index_root(record_at(record->next), *link);
    root_index_->erase(std::string(name));
    transaction.commit();
    return true;
}

std::vector<Root> Heap::roots() const {
    std::vector<Root> all;
    for (uint64_t left = root_index().size(), link = header().roots; left > 0; left--) {
        const RootRecord& record = record_at(link);
        all.push_back({std::string(name_of(record)), record.address, record.kind, address_of(&record)});
        link = record.next;
    }
    return all;
}

}  // namespace bequest
