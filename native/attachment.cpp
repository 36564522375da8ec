#include "attachment.hpp"

#include <unistd.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <system_error>

#include "doorbell.hpp"

namespace bequest {

namespace {
constexpr int kMappingTriesMax = 100;

// Any number of increments may be lost to a race between threads of one process; none is, because
// the binding serialises them. Readers elsewhere see a recent value.
void count(Shared<uint64_t>& counter, uint64_t by = 1) {
    counter.store(counter.load(std::memory_order_relaxed) + by, std::memory_order_relaxed);
}
}  // namespace

Attachment::Attachment(Table table, uint32_t id, std::shared_ptr<AddressSpace> space, OpenSlab open_slab)
    : table_(table),
      id_(id),
      incarnation_(table.incarnation(id)),
      space_(std::move(space)),
      open_slab_(std::move(open_slab)),
      pool_(table, id),
      arena_(
          table, id, pool_,
          [space = space_.get()](uint64_t start, uint64_t end) { return space->has_old_views(start, end); }),
      readings_(table, id) {}

uint64_t Attachment::nbytes(const Extent& e) const { return table_.nbytes(e); }

// True if it was not: then others have had the GIL meanwhile.
bool Attachment::ensure_mapped(const Extent& e) {
    if (has_scratch()) space_->retire_scratch();
    return ensure_mapped(table_.extent(e.descriptor).slab, address(e), e.word.pages() * kPageBytes);
}

bool Attachment::ensure_mapped(uint32_t slab, uint64_t start, uint64_t bytes) {
    if (space_->is_mapped(slab, start, bytes)) return false;
    const OpenedSlab opened = open_slab_(slab);
    try {
        const SlabRecord& record = table_.slab_record(slab);
        if (!space_->is_mapped(slab, start, bytes))  // another thread may have been here meanwhile
            space_->map(slab, record.address, uint64_t{record.pages} * kPageBytes, opened, start, bytes);
    } catch (...) {
        ::close(opened.fd);
        throw;
    }
    ::close(opened.fd);
    return true;
}

void Attachment::open_pages(const Extent& e) { reopen(e); }

// Pages are opened for writing first: nobody has a view of them yet.
void Attachment::respect_limits(const Extent& e) {
    if (e.word.is_frozen() || table_.seal(e.descriptor) != 0) protect_pages(e);
}

// What is done to the pages of an extent is undone if it was not ours any more. Its descriptor may be another
// extent's by then: so the address that is opened is one that was ours, and the one that is closed is the
// same. Whoever takes it waits for us, but not for ever (Opening). False if it is not ours.
template <class Change>
bool Attachment::change_while_ours(const Extent& e, Change change) {
    const uint64_t start = address(e), bytes = e.word.pages() * kPageBytes;
    const Opening opening(table_.slot(id_));
    if (!still_ours(e)) return false;
    change(start, bytes);
    if (still_ours(e)) return true;
    space_->close(start, bytes);
    return false;
}

void Attachment::protect_pages(const Extent& e) {
    change_while_ours(e, [&](uint64_t start, uint64_t bytes) { space_->protect(start, bytes); });
}

// The order is owed: closed for writing before the table says that it is sealed.
bool Attachment::seal(const Extent& e, uint32_t number) { return table_.set_seal(e, number); }

// And open for writing when it does not say so any more.
bool Attachment::unseal(const Extent& e) {
    if (e.word.is_frozen()) return table_.set_seal(e, 0);  // it stays closed for another reason
    return table_.set_seal(e, 0) &&
           change_while_ours(e, [&](uint64_t start, uint64_t bytes) { space_->unprotect(start, bytes); });
}

// --- frozen regions ---------------------------------------------------------------------------------

bool Attachment::freeze(Extent& e) {
    protect_pages(e);
    return table_.change(e, State::kFrozen, id_);  // the commit point
}

// What cannot be opened for writing is frozen again: its owner must not take it for what it may write to.
Thaw Attachment::thaw(Extent& e) {
    const Thaw thawed = readings_.thaw(e);
    if (thawed != Thaw::kDone || table_.seal(e.descriptor) != 0) return thawed;
    try {
        const auto unprotect = [&](uint64_t start, uint64_t bytes) { space_->unprotect(start, bytes); };
        return change_while_ours(e, unprotect) ? Thaw::kDone : Thaw::kLost;
    } catch (...) {
        table_.change(e, State::kFrozen, id_);
        throw;
    }
}

// Who reads it has it from now on. What we read of it ourselves stays open for that.
bool Attachment::free_frozen(Extent e) {
    close_pages(e);
    std::optional<Extent> forsaken;
    if (!readings_.forsake(e, forsaken)) return false;
    if (forsaken) give_home(*forsaken);
    count(table_.slot(id_).frees);
    return true;
}

std::optional<HeldReading> Attachment::read(const FrozenName& name) {
    if (name.descriptor >= kMaxExtents) return std::nullopt;
    const Readings::Reading reading = readings_.begin(name);
    if (reading.forsaken) give_home(*reading.forsaken);
    if (reading.begun == Readings::Begun::kNoRecord) throw TooManyReadings();
    if (reading.begun == Readings::Begun::kGone) return std::nullopt;
    const HeldReading held{reading.record, reading.extent, name.address};
    try {
        open_to_read(held);
    } catch (...) {
        if (const auto forsaken = readings_.end(held.record)) give_home(*forsaken);
        throw;
    }
    if (!held.extent.word.is_kept_by(id_)) {
        count(table_.slot(id_).reads);
        count(table_.slot(id_).read_pages, held.extent.word.pages());
    }
    return held;
}

// As in open_mapped. Our record stands, so nobody takes the pages away meanwhile.
void Attachment::open_to_read(const HeldReading& reading) {
    const uint64_t bytes = reading.extent.word.pages() * kPageBytes;
    for (int tries = 0; tries < kMappingTriesMax; tries++) {
        ensure_mapped(reading.extent);
        if (space_->open_to_read(reading.address, bytes)) return;
    }
    throw std::system_error(ESTALE, std::generic_category(), "mapping memory that changes under us");
}

void Attachment::let_go(const HeldReading& reading) {
    space_->end_reading(reading.address);
    if (const auto forsaken = readings_.end(reading.record)) give_home(*forsaken);
}

// While a slab's file is asked for, another thread may find that memory was stolen and forget all mappings
// but those of what is held.
void Attachment::open_mapped(const std::vector<Extent>& extents, const std::vector<Range>& ranges) {
    for (const Extent& e : extents) ensure_mapped(e);
    int tries = 0;
    for (size_t opened = 0; opened < ranges.size();) {
        if (space_->open(ranges[opened].start, ranges[opened].end - ranges[opened].start)) {
            opened++;
            continue;
        }
        if (++tries == kMappingTriesMax)
            throw std::system_error(ESTALE, std::generic_category(), "mapping memory that changes under us");
        for (const Extent& e : extents) ensure_mapped(e);
        opened = 0;
    }
}

void Attachment::close_pages(const Extent& e) { space_->close(address(e), e.word.pages() * kPageBytes); }

// Mapped before the look that counts: what is mapped anew has no write protection, and opening leaves what it
// finds.
void Attachment::reopen(const Extent& e) {
    for (bool opened = false; !opened;) {  // as in open_mapped
        if (!still_ours(e)) return;
        ensure_mapped(e);
        const auto open = [&](uint64_t start, uint64_t bytes) { opened = space_->open(start, bytes); };
        if (!change_while_ours(e, open)) return;
    }
    respect_limits(e);
}

// What cannot be opened again counts as lost, so that who touches it is told and not killed.
std::exception_ptr Attachment::reopen_all(const std::vector<Extent>& extents, size_t from, size_t to) {
    std::exception_ptr trouble;
    for (size_t i = from; i < to; i++) {
        const PlacedExtent placed = table_.placed(extents[i]);
        try {
            reopen(extents[i]);
        } catch (...) {
            trouble = std::current_exception();
            if (still_ours(extents[i])) space_->lose(placed.address, placed.extent.word.pages() * kPageBytes);
        }
    }
    return trouble;
}

void Attachment::map_anew(const std::vector<Extent>& extents) {
    for (const Extent& e : extents) {
        const PlacedExtent placed = table_.placed(e);
        if (still_ours(e)) space_->forget(placed.address, e.word.pages() * kPageBytes);
    }
    reopen_all(extents, 0, extents.size());
}

// Ours before its pages are opened: until then the MMU may have taken the run and made its descriptor
// another's, and opening pages by it would open another's memory.
std::optional<Extent> Attachment::alloc(const RunRequest& request, uint64_t nbytes, uint32_t flags) {
    while (auto run = arena_.pick(request)) {
        if (const uint64_t lead = request.lead(address(*run)); lead > 0) {
            const auto rest = split(*run, lead);
            const bool is_there = table_.owner(run->descriptor) == run->word;
            if (is_there) arena_.put(*run);
            if (!rest && is_there) return std::nullopt;
            if (!rest) continue;
            run = rest;
        }
        table_.bear(*run);
        if (!table_.define(*run, nbytes, flags) || !table_.set_seal(*run, 0)) continue;
        if (!table_.change(*run, State::kOwned, id_)) continue;
        try {
            reopen(*run);  // the whole run at once: one mapping stays one
        } catch (...) {
            put_home(*run);
            throw;
        }
        if (run->word.pages() > request.pages) {
            const auto rest = split(*run, request.pages);
            if (!rest) {
                if (!still_ours(*run)) continue;
                put_home(*run);
                return std::nullopt;
            }
            put_home(*rest);
        }
        if (!still_ours(*run)) continue;  // stolen before it meant anything
        count(table_.slot(id_).allocs);
        return run;
    }
    return std::nullopt;
}

void Attachment::put_home(Extent e) {
    if (table_.free(id_, e)) arena_.put(e);
}

bool Attachment::free(Extent e) {
    if (!still_ours(e)) return false;
    if (e.word.is_frozen()) return free_frozen(e);
    const uint64_t start = address(e);
    const bool at_home = home_of(start) == id_;
    // At home they stay open, ready for the next alloc, unless somebody may have a view of them.
    const uint64_t end = start + e.word.pages() * kPageBytes;
    if (!at_home || space_->was_lost(start, end) || space_->is_sealed(start, end)) close_pages(e);
    if (!give_home(e)) return false;
    count(table_.slot(id_).frees);
    return true;
}

bool Attachment::give_home(Extent e) {
    const bool at_home = home_of(address(e)) == id_;
    if (!table_.free(id_, e)) return false;
    if (at_home) arena_.put(e);
    return true;
}

// To the Rack MMU, like memory that is away: it is in nobody's arena, and goes when its slab goes.
bool Attachment::free_failed(Extent e) {
    if (!table_.change(e, State::kOwned, kMmuId)) return false;
    count(table_.slot(id_).frees);
    return true;
}

std::optional<Extent> Attachment::split(Extent& left, uint64_t pages) {
    const auto empty = pool_.take();
    if (!empty) return std::nullopt;
    auto right = table_.split(id_, left, pages, *empty);
    if (!right) pool_.give_back(*empty);
    return right;
}

bool Attachment::merge(Extent& left, Extent& right) {
    if (!table_.merge(id_, left, right)) return false;
    pool_.give_back(right.descriptor);
    return true;
}

// One mprotect for a run of neighbours costs what one for a single page does.
std::vector<Attachment::Range> Attachment::neighbours_joined(const std::vector<Extent>& extents,
                                                             size_t count) const {
    std::vector<Range> ranges;
    ranges.reserve(count);
    for (size_t i = 0; i < count; i++) {
        const uint64_t start = address(extents[i]);
        ranges.push_back({start, start + extents[i].word.pages() * kPageBytes});
    }
    const auto by_start = [](const Range& a, const Range& b) { return a.start < b.start; };
    if (!std::is_sorted(ranges.begin(), ranges.end(), by_start))
        std::sort(ranges.begin(), ranges.end(), by_start);
    size_t kept = 0;
    for (size_t i = 1; i < ranges.size(); i++) {
        if (ranges[i].start == ranges[kept].end) {
            ranges[kept].end = ranges[i].end;
        } else {
            ranges[++kept] = ranges[i];
        }
    }
    if (!ranges.empty()) ranges.resize(kept + 1);
    return ranges;
}

void Attachment::close_pages(const std::vector<Extent>& extents) {
    for (const Range& r : neighbours_joined(extents, extents.size())) space_->close(r.start, r.end - r.start);
}

// From the front. Nothing is done to the pages of others: their descriptors may be other extents' by now.
size_t Attachment::count_ours(const std::vector<Extent>& extents) const {
    size_t ours = 0;
    while (ours < extents.size() && still_ours(extents[ours])) ours++;
    return ours;
}

GrantResult Attachment::grant(const Peer& to, std::vector<Extent>& extents, std::string_view tag,
                              uint64_t capacity) {
    assert(tag.size() <= kTagBytesMax);
    if (!table_.is_live(to.id, to.incarnation)) return {GrantStatus::kDead, 0};
    const Inbox inbox(table_, to.id);
    // Closed before the first cell is claimed: a claimed cell holds up everybody else's deliveries behind it.
    const size_t ours = count_ours(extents);
    if (ours == 0 && !extents.empty()) return {GrantStatus::kLost, 0};
    const size_t closed = inbox.room_for(ours, capacity);
    if (closed == 0) return {GrantStatus::kFull, 0};
    const std::vector<Range> ranges = neighbours_joined(extents, closed);
    try {
        for (const Range& r : ranges) space_->close(r.start, r.end - r.start);
    } catch (...) {
        const Opening opening(table_.slot(id_));
        if (count_ours(extents) < closed) throw;
        // Backwards, so that what was closed last makes room for what was closed first.
        for (auto r = ranges.rbegin(); r != ranges.rend(); ++r) space_->open(r->start, r->end - r->start);
        if (count_ours(extents) < closed)  // too rare for more than safety
            for (const Range& r : ranges) space_->close(r.start, r.end - r.start);
        throw;
    }
    // Sealed as soon as they are claimed: the sealed cells of one who has lost the memory can be cleared
    // away.
    std::vector<uint64_t> cells;
    cells.reserve(closed);
    while (cells.size() < closed) {
        const auto position = inbox.claim(id_, capacity);
        if (!position) break;
        const Extent& e = extents[cells.size()];
        const Extent in_flight{e.descriptor, e.word.next(State::kInFlight, to.id)};
        inbox.seal(*position, in_flight, to.incarnation, {id_, incarnation_}, tag);
        cells.push_back(*position);
    }
    if (cells.empty()) return {GrantStatus::kFull, 0, reopen_all(extents, 0, closed)};
    BEQUEST_STEP("pages closed");

    size_t committed = 0;
    uint64_t pages = 0;
    while (committed < cells.size() && table_.change(extents[committed], State::kInFlight, to.id))
        pages += extents[committed++].word.pages();  // each its own commit point
    const bool lost = committed < cells.size();
    for (size_t i = committed; i < cells.size(); i++) inbox.abandon(cells[i], id_);
    // Pages are opened again when no cell is in our hands any more: it may take long, and it may fail.
    if (!table_.is_live(to.id, to.incarnation)) {
        const size_t kept = take_back(inbox, extents, committed, cells);
        const std::exception_ptr trouble = reopen_all(extents, kept, committed);
        const std::exception_ptr more = reopen_all(extents, committed + lost, closed);
        return {GrantStatus::kDead, kept, trouble ? trouble : more};
    }
    for (size_t i = 0; i < committed; i++) inbox.publish(cells[i], id_);
    if (committed > 0) ring_doorbell(table_.slot(to.id), static_cast<uint32_t>(committed));
    Slot& mine = table_.slot(id_);
    count(mine.grants, committed);
    count(mine.granted_pages, pages);
    const std::exception_ptr trouble = reopen_all(extents, committed + lost, closed);
    if (lost) return {GrantStatus::kLost, committed, trouble};
    return {committed == extents.size() ? GrantStatus::kDone : GrantStatus::kFull, committed, trouble};
}

// The receiver may have died between our first look and the commit, too late for the daemon to see what was
// sent: then take it back, from the end, unless somebody has dealt with it already. What lies before that
// counts as granted, and since the daemon may have looked there too early, it is freed as the daemon would
// have.
size_t Attachment::take_back(const Inbox& inbox, std::vector<Extent>& extents, size_t committed,
                             const std::vector<uint64_t>& cells) {
    size_t kept = committed;
    for (; kept > 0 && table_.change(extents[kept - 1], State::kOwned, id_); kept--)
        inbox.abandon(cells[kept - 1], id_);
    for (size_t i = 0; i < kept; i++) {
        inbox.publish(cells[i], id_);
        if (table_.change(extents[i], State::kOwned, id_)) table_.free(id_, extents[i]);
    }
    return kept;
}

GrantStatus Attachment::send(const Peer& to, std::string_view message, uint64_t capacity) {
    assert(message.size() <= kTagBytesMax);
    if (!table_.is_live(to.id, to.incarnation)) return GrantStatus::kDead;
    const Inbox inbox(table_, to.id);
    const auto position = inbox.claim(id_, capacity);
    if (!position) return GrantStatus::kFull;
    inbox.seal(*position, Extent{}, to.incarnation, {id_, incarnation_}, message);
    inbox.publish(*position, id_);
    ring_doorbell(table_.slot(to.id), 1);
    return GrantStatus::kDone;
}

bool Attachment::is_for_us(const Delivery& delivery, const Peer& addressee) {
    if (delivery.incarnation != addressee.incarnation) {
        Extent e = delivery.extent;  // meant for somebody dead whose id it bears: nobody's any more
        if (e.descriptor < kMaxExtents && e.word.is(State::kInFlight, addressee.id) &&
            table_.change(e, State::kOwned, id_))
            table_.free(id_, e);
        return false;
    }
    if (delivery.extent.descriptor == kNoDescriptor) return true;
    return delivery.extent.descriptor < kMaxExtents &&
           delivery.extent.word.is(State::kInFlight, addressee.id) && still_ours(delivery.extent);
}

// All of them, or none.
void Attachment::open_all(const std::vector<Extent>& extents, const std::vector<Range>& ranges) {
    try {
        open_mapped(extents, ranges);
    } catch (...) {
        for (const Range& r : ranges)
            if (space_->is_open(r.start, r.end - r.start)) space_->close(r.start, r.end - r.start);
        throw;
    }
}

std::vector<Accepted> Attachment::accept(uint32_t inbox_id, uint32_t incarnation, size_t limit) {
    const Inbox inbox(table_, inbox_id);
    std::vector<Accepted> accepted;
    std::vector<uint64_t> cells;
    std::vector<Extent> arrived;
    std::vector<uint64_t> places;  // a descriptor may be another extent's later
    Delivery delivery;
    while (accepted.size() < limit) {
        const auto position = inbox.take(id_, delivery);
        if (!position) break;
        if (delivery.incarnation != incarnation && delivery.incarnation == table_.incarnation(inbox_id)) {
            inbox.put_back(*position, id_);  // we are the heir of one whose id another bears by now
            ring_doorbell(table_.slot(inbox_id), 1);
            break;
        }
        if (!is_for_us(delivery, {inbox_id, incarnation})) {
            inbox.finish(*position, id_);
            continue;
        }
        accepted.push_back({delivery.extent,
                            delivery.sender,
                            {reinterpret_cast<const char*>(delivery.tag), delivery.tag_bytes}});
        cells.push_back(*position);
        const bool has_memory = delivery.extent.descriptor != kNoDescriptor;
        places.push_back(has_memory ? address(delivery.extent) : 0);
        if (has_memory) arrived.push_back(delivery.extent);
    }
    if (cells.empty()) {
        ring_space_bell(table_.slot(inbox_id));  // what nobody can use was cleared away
        return accepted;
    }
    try {
        open_all(arrived, neighbours_joined(arrived, arrived.size()));
    } catch (...) {
        for (size_t i = cells.size(); i-- > 0;) inbox.put_back(cells[i], id_);
        ring_doorbell(table_.slot(inbox_id), static_cast<uint32_t>(cells.size()));  // for other receivers
        throw;
    }
    size_t kept = 0;
    for (size_t i = 0; i < cells.size(); i++) {
        Accepted& a = accepted[i];
        const bool ours = a.extent.descriptor == kNoDescriptor ||
                          table_.change(a.extent, State::kOwned, id_);  // the commit point
        if (!ours) space_->close(places[i], a.extent.word.pages() * kPageBytes);
        if (ours && a.extent.descriptor != kNoDescriptor) respect_limits(a.extent);
        inbox.finish(cells[i], id_);
        if (ours && kept != i) accepted[kept] = std::move(a);
        kept += ours;
    }
    accepted.resize(kept);
    ring_space_bell(table_.slot(inbox_id));
    // Cells are published in any order: a wake-up may have come for one that waited behind another's. Whoever
    // takes that other passes the wake-up on.
    if (table_.slot(inbox_id).sleepers.load() > 0 && inbox.ready()) ring_doorbell(table_.slot(inbox_id), 1);
    count(table_.slot(id_).accepts, kept);
    return accepted;
}

std::vector<Accepted> Attachment::inherit(const Peer& dead, size_t limit) {
    if (table_.slot(dead.id).heir.load() != table_.heir_word(id_)) return {};
    return accept(dead.id, dead.incarnation, limit);
}

// What it owns may be another's, or gone, at any moment, and is read as it is: nothing is opened here, and
// nothing mapped outside of the slab.
void Attachment::map_ahead(uint32_t victim) {
    for (uint32_t i = 0; i < table_.extent_limit(); i++) {
        const Extent e{i, table_.owner(i)};
        if (!e.word.is_kept_by(victim) || !table_.is_stealable(i)) continue;
        const uint32_t slab = table_.extent(i).slab;
        const uint64_t start = address(e), bytes = e.word.pages() * kPageBytes;
        if (!still_ours(e) || !table_.has_slab(slab)) continue;
        const SlabRecord& record = table_.slab_record(slab);
        const uint64_t first = record.address, end = first + uint64_t{record.pages} * kPageBytes;
        if (start >= first && start + bytes <= end) ensure_mapped(slab, start, bytes);
    }
}

std::vector<PlacedExtent> Attachment::stolen_from(const Peer& victim, const IsHeld& is_held) const {
    std::vector<PlacedExtent> found;
    for (uint32_t i = 0; i < table_.extent_limit(); i++) {
        const Extent e{i, table_.owner(i)};
        if (e.word.is_kept_by(id_) && table_.bears_mark(e, victim.id, victim.incarnation) && !is_held(e))
            found.push_back(table_.placed(e));
    }
    std::sort(found.begin(), found.end());
    return found;
}

// Other threads of ours may be at the same estate whenever the GIL is let go of, as it is while a slab's file
// is asked for. So what is opened was looked up after the last of these calls; what fails to commit then has
// been taken from us by another process, and its pages are no thread's here.
std::vector<Extent> Attachment::adopt(const Peer& victim, const IsHeld& is_held) {
    std::vector<PlacedExtent> found;
    std::vector<Extent> extents, adopted;
    bool others_ran = true;
    for (int tries = 0; others_ran; tries++) {
        if (tries == kMappingTriesMax)
            throw std::system_error(ESTALE, std::generic_category(), "mapping memory that changes under us");
        const Opening opening(table_.slot(id_));  // it may be stolen on from us
        others_ran = false;
        found = stolen_from(victim, is_held);
        for (const PlacedExtent& placed : found) others_ran |= ensure_mapped(placed.extent);
        if (others_ran) continue;
        for (const PlacedExtent& placed : found) extents.push_back(placed.extent);
        open_all(extents, neighbours_joined(extents, extents.size()));
    }
    for (size_t i = 0; i < extents.size(); i++) {
        const State state = extents[i].word.state();
        if (table_.change(extents[i], state, id_)) {  // the commit point: the mark is void
            table_.renew_seal(extents[i]);
            respect_limits(extents[i]);
            adopted.push_back(extents[i]);
        } else if (!table_.owner(extents[i].descriptor).is_kept_by(id_)) {
            space_->close(found[i].address, extents[i].word.pages() * kPageBytes);
        }
    }
    count(table_.slot(id_).steals);
    return adopted;
}

void Attachment::count_resumed() { count(table_.slot(id_).resumes); }

}  // namespace bequest
