#include "recovery.hpp"

#include <algorithm>
#include <climits>
#include <cstdio>
#include <unordered_map>

#include "doorbell.hpp"

namespace bequest {

namespace {
constexpr int kTriesMax = 1000;  // at a table in which somebody may write nonsense for ever
}

// --- slabs -------------------------------------------------------------------------------------

bool Steward::write_record(const SlabSpec& spec) {
    SlabRecord& record = table_.slab_record(spec.slab);
    if (record.id_plus_one.load() != 0) return false;
    record.element = spec.element;
    record.address = spec.address;
    record.pages = spec.pages;
    record.home = spec.home;
    record.huge = spec.huge;
    record.has_failed.store(0);
    record.id_plus_one.store(spec.slab + 1);
    const uint32_t index = spec.slab % kMaxSlabs;
    uint32_t used = table_.header().slabs_used.load();
    while (used <= index && !table_.header().slabs_used.compare_exchange_weak(used, index + 1)) {
    }
    return true;
}

bool Steward::add_slab(const SlabSpec& spec) {
    const auto empty = pool_.take();
    if (!empty) return false;
    if (!write_record(spec)) return pool_.give_back(*empty), false;
    Descriptor& d = table_.extent(*empty);
    d.address = spec.address;
    d.details.store(Details::make(0, 0, table_.owner(*empty).epoch()).bits);
    d.slab = spec.slab;
    const OwnerWord unused = table_.owner(*empty);
    if (unused.state() != State::kEmpty ||
        !table_.change(*empty, unused, unused.next(State::kFree, spec.home, spec.pages))) {
        table_.slab_record(spec.slab).id_plus_one.store(0);
        return false;
    }
    table_.push_return(kMmuId, spec.home, *empty);
    return true;
}

bool Steward::add_slab_granted(const SlabSpec& spec, uint64_t nbytes, const Addressee& to, uint32_t seal) {
    const auto empty = pool_.take();
    if (!empty) return false;
    if (!write_record(spec)) return pool_.give_back(*empty), false;
    Descriptor& d = table_.extent(*empty);
    d.address = spec.address;
    d.slab = spec.slab;
    const OwnerWord unused = table_.owner(*empty);
    Extent extent{*empty, unused.next(State::kFree, kMmuId, spec.pages)};
    if (unused.state() == State::kEmpty && table_.change(*empty, unused, extent.word) &&
        table_.change(extent, State::kOwned, kMmuId) && deliver(extent, nbytes, to, seal))
        return true;
    table_.change(extent, State::kEmpty, kNobody);
    pool_.give_back(*empty);
    table_.slab_record(spec.slab).id_plus_one.store(0);
    return false;
}

// Each extent is taken by its word, so that the sum shows whether they were all of the slab's: between two
// looks at the table a split may have hidden a part. The home's intent is looked at after the words: what it
// begins later fails on a word that we have taken or makes us fail, and what it began before must find its
// words again.
bool Steward::take_slab(uint32_t slab) {
    const SlabRecord& record = table_.slab_record(slab);
    std::vector<Extent> extents = extents_of(slab);
    if (extents.empty() || table_.slot(home_of(record.address)).intent.kind() != IntentKind::kNone)
        return false;
    std::vector<Extent> taken;
    uint64_t pages = 0;
    bool all = true;
    for (Extent& e : extents) {
        if (!e.word.is(State::kOwned, kMmuId)) {
            all = e.word.state() == State::kFree && table_.change(e, State::kOwned, kMmuId);
            if (!all) break;
            taken.push_back(e);
        }
        if (table_.extent(e.descriptor).slab == slab)
            pages += e.word.pages();  // it may have become another's
    }
    if (!all || pages != record.pages) {
        for (Extent& e : taken) free_own(e);
        return false;
    }
    table_.slab_record(slab).id_plus_one.store(0);
    for (Extent& e : extents) table_.change(e, State::kEmpty, kNobody);
    return true;
}

std::vector<uint32_t> Steward::idle_slabs() const {
    std::unordered_map<uint32_t, uint64_t> idle_pages;
    for (uint32_t i = 0; i < table_.extent_limit(); i++) {
        const OwnerWord word = table_.owner(i);
        if (word.state() == State::kFree || word.is(State::kOwned, kMmuId))
            idle_pages[table_.extent(i).slab] += word.pages();
    }
    std::vector<uint32_t> idle;
    for (const auto& [slab, pages] : idle_pages)
        if (table_.has_slab(slab) && pages == table_.slab_record(slab).pages) idle.push_back(slab);
    std::sort(idle.begin(), idle.end());
    return idle;
}

// --- memory that is away ---------------------------------------------------------------------------

bool Steward::withdraw(Extent extent) {
    return extent.word.state() == State::kOwned && extent.descriptor < kMaxExtents &&
           table_.change(extent, State::kOwned, kMmuId);
}

std::optional<OwnerWord> Steward::restore(Extent before) {
    const OwnerWord withdrawn = before.word.next(State::kOwned, kMmuId);
    const OwnerWord restored = withdrawn.next(State::kOwned, before.word.id());
    if (!table_.change(before.descriptor, withdrawn, restored)) return std::nullopt;
    return restored;
}

bool Steward::deliver(Extent extent, uint64_t nbytes, const Addressee& to, uint32_t seal) {
    if (!table_.is_live(to.id, to.incarnation)) return false;
    const Inbox inbox(table_, to.id);
    const auto position = inbox.claim(kMmuId);
    if (!position) return false;
    const Extent in_flight{extent.descriptor, extent.word.next(State::kInFlight, to.id)};
    table_.bear(extent);
    if (!table_.define(extent, nbytes, 0) || !table_.set_seal(extent, seal))
        return inbox.abandon(*position, kMmuId), false;
    const Peer stranger{to.sender, 0};  // not of this group: its name is not here
    inbox.seal(*position, in_flight, to.incarnation, stranger, to.tag);
    if (!table_.change(extent.descriptor, extent.word, in_flight.word)) {  // the commit point
        inbox.abandon(*position, kMmuId);
        return false;
    }
    inbox.publish(*position, kMmuId);
    ring_doorbell(table_.slot(to.id), 1);
    return true;
}

// Ours, as what is away is. A member may have written an address there that no extent can have.
bool Steward::is_away(const PlacedExtent& placed) const {
    const auto& [start, e] = placed;
    const uint32_t slab = table_.extent(e.descriptor).slab;
    if (!e.word.is(State::kOwned, kMmuId) || start % kPageBytes != 0 || !table_.has_slab(slab)) return false;
    const SlabRecord& record = table_.slab_record(slab);
    const uint64_t first = record.address, bytes = uint64_t{record.pages} * kPageBytes;
    const uint64_t offset = start - first, length = e.word.pages() * kPageBytes;
    return start >= first && offset <= bytes && length <= bytes - offset;
}

// The extent of exactly these pages, cut out of the away extent that holds them.
std::optional<Extent> Steward::carve_away(uint64_t address, uint64_t pages) {
    for (uint32_t i = 0; i < table_.extent_limit(); i++) {
        const PlacedExtent placed = table_.placed({i, table_.owner(i)});
        auto [start, e] = placed;
        if (!is_away(placed) || address < start ||
            address + pages * kPageBytes > start + e.word.pages() * kPageBytes)
            continue;
        if (address > start) {
            const auto empty = pool_.take();
            if (!empty) return std::nullopt;
            const auto right = table_.split(kMmuId, e, (address - start) / kPageBytes, *empty);
            if (!right) return std::nullopt;
            e = *right;
        }
        if (e.word.pages() > pages) {
            const auto empty = pool_.take();
            if (!empty || !table_.split(kMmuId, e, pages, *empty)) return std::nullopt;
        }
        return e;
    }
    return std::nullopt;
}

bool Steward::deliver_into(uint64_t address, uint64_t pages, uint64_t nbytes, const Addressee& to) {
    const auto extent = carve_away(address, pages);
    return extent && deliver(*extent, nbytes, to, 0);
}

uint64_t Steward::free_away(uint64_t address, uint64_t pages) {
    uint64_t freed = 0;
    const uint64_t end = address + pages * kPageBytes;
    for (uint32_t i = 0; i < table_.extent_limit(); i++) {
        const PlacedExtent placed = table_.placed({i, table_.owner(i)});
        if (!is_away(placed)) continue;
        const uint64_t start = placed.address, stop = start + placed.extent.word.pages() * kPageBytes;
        const uint64_t low = std::max(start, address), high = std::min(stop, end);
        if (low >= high) continue;
        auto part = carve_away(low, (high - low) / kPageBytes);
        if (part && free_own(*part)) freed += part->word.pages();
    }
    return freed;
}

// --- deaths ------------------------------------------------------------------------------------------

// One that bears the MMU's link already may have got it from a predecessor that was killed before it pushed:
// then it is on no list, and its home must look for it.
bool Steward::free_own(Extent& extent) {
    const uint32_t home = home_of(table_.extent(extent.descriptor).address);
    const bool was_linked = table_.extent(extent.descriptor).linked.load() == kMmuId + 1;
    const bool freed = table_.free(kMmuId, extent);
    if (freed && was_linked && home <= kMaxProcessId) table_.slot(home).rescan.store(1);
    return freed;
}

// Its intent and cells are settled like any process's. Beyond that, slabs are its doing: extents without a
// record are what is left of one that was taken, a record without extents is the beginning of one. What it
// had made its own in a slab that is there is for the books to explain. Its empty descriptors are anybody's.
uint32_t Steward::recover() {
    uint32_t ended = settle(kMmuId);
    for (uint32_t i = 0; i < kBlockCount; i++) {
        uint64_t ours = kMmuId;
        table_.block(i).compare_exchange_strong(ours, kNobody);
    }
    std::unordered_map<uint32_t, bool> has_extents;
    for (uint32_t i = 0; i < table_.extent_limit(); i++) {
        const OwnerWord word = table_.owner(i);
        if (word.state() == State::kEmpty) continue;
        const uint32_t slab = table_.extent(i).slab;
        if (table_.has_slab(slab))
            has_extents[slab] = true;
        else if (word.id() == kMmuId &&
                 table_.may_change(word, State::kEmpty))  // a member may write any word
            ended += table_.change(i, word, word.next(State::kEmpty, kNobody));
    }
    for (uint32_t index = 0; index < table_.slab_limit(); index++) {
        SlabRecord& record = table_.slab_record(index);
        const uint32_t id_plus_one = record.id_plus_one.load();
        if (id_plus_one == 0 || has_extents.contains(id_plus_one - 1)) continue;
        record.id_plus_one.store(0);
        ended++;
    }
    return ended;
}

bool Steward::settle_intent(uint32_t dead) {
    const auto change = change_of(dead);
    if (!change) return false;
    finish(*change, dead, true);
    Shared<uint32_t>& armed = table_.slot(dead).intent.armed;
    armed.store(armed.load() & ~3u);
    return true;
}

// What nobody keeps is inherited with the reader that has died. The record goes after that: until then nobody
// frees it. And whoever lets go of it in between leaves it to us.
uint32_t Steward::settle_readings(uint32_t dead) {
    uint32_t settled = 0;
    for (uint32_t i = 0; i < table_.reading_limit(); i++) {
        const ReadingWord reading = table_.reading_word(i);
        if (reading.bits == 0 || reading.id() != dead) continue;
        for (int tries = 0; tries < kTriesMax; tries++) {  // another may be looking whether it is read
            Extent e{reading.descriptor(), table_.owner(reading.descriptor())};
            if (!e.word.is(State::kFrozen, kMmuId) || table_.change(e, State::kFrozen, dead)) break;
        }
        table_.slot(kMmuId).parting.store(reading.descriptor() + 1);
        table_.reading(i).store(0);
        free_if_forsaken(reading.descriptor());
        settled++;
    }
    return settled;
}

// Of several that look at one time the last must find nothing: so who has died before it looked has us look.
bool Steward::settle_parting(uint32_t dead) {
    Shared<uint32_t>& parting = table_.slot(dead).parting;
    if (parting.load() == 0) return false;
    const uint32_t descriptor = (parting.load() - 1) % kMaxExtents;
    Extent e{descriptor, table_.owner(descriptor)};
    if (e.word.is(State::kThawing, dead)) table_.change(e, State::kFrozen, dead);
    if (dead == kMmuId && e.word.is(State::kOwned, kMmuId)) free_own(e);  // see free_if_forsaken
    if (table_.owner(descriptor).is(State::kFrozen, kMmuId)) free_if_forsaken(descriptor);
    parting.store(0);
    return true;
}

bool Steward::free_if_forsaken(uint32_t descriptor) {
    Shared<uint32_t>& parting = table_.slot(kMmuId).parting;
    parting.store(descriptor + 1);
    auto forsaken = take_if_forsaken(table_, kMmuId, descriptor);
    const bool freed = forsaken && free_own(*forsaken);
    parting.store(0);
    return freed;
}

// Of the dead: to its readers, if it has any.
bool Steward::release_frozen(Extent extent) {
    table_.slot(kMmuId).parting.store(extent.descriptor + 1);
    if (table_.change(extent, State::kFrozen, kMmuId)) return free_if_forsaken(extent.descriptor);
    table_.slot(kMmuId).parting.store(0);
    return false;
}

uint32_t Steward::settle(uint32_t dead) {
    uint32_t settled = settle_intent(dead);
    settled += settle_parting(dead);
    settled += settle_readings(dead);
    if (table_.life(dead) == Life::kDead) settled_[dead % kIdCount] = table_.slot(dead).life.load();
    for (uint32_t id = 1; id < kIdCount; id++) {
        Slot& slot = table_.slot(id);
        if (slot.life.load() == 0) continue;  // vacated slots count: their next bearer gets the cells
        settled += Inbox(table_, id).settle(dead);
        // It may have died on its way to a bell, or of the sleep from which one had woken it.
        ring_doorbell(slot, INT_MAX);
        ring_space_bell(slot);
        // An extent that `dead` was sending home may be on no list: its home must look for it.
        if (id <= kMaxProcessId) slot.rescan.store(1);
    }
    return settled;
}

uint64_t Steward::release(uint32_t dead) {
    uint64_t pages = 0;
    for (uint32_t i = 0; i < table_.extent_limit(); i++) {
        Extent e{i, table_.owner(i)};
        if (e.word.is(State::kFrozen, dead) && release_frozen(e)) pages += e.word.pages();
        if (!e.word.is(State::kOwned, dead) && !e.word.is(State::kInFlight, dead)) continue;
        // Ours first: only an owner frees, for the descriptor of another may be a new extent by then.
        if (table_.change(e, State::kOwned, kMmuId) && free_own(e)) pages += e.word.pages();
    }
    Delivery unread;  // what was told of the memory just freed
    const Inbox inbox(table_, dead);
    for (uint32_t i = 0; i < 2 * kInboxCells; i++) {  // a member may go on sending to the dead for ever
        const auto position = inbox.take(kMmuId, unread);
        if (!position) break;
        inbox.finish(*position, kMmuId);
    }
    return pages;
}

Holdings Steward::holdings(uint32_t id) const {
    Holdings held;
    for (uint32_t i = 0; i < table_.extent_limit(); i++) {
        const OwnerWord word = table_.owner(i);
        const Descriptor& d = table_.extent(i);
        // What it was sending home bears its id until the home has looked: see Arena::rescan.
        if (d.linked.load() == id + 1 && table_.life(home_of(d.address)) == Life::kLive) held.extents++;
        if (word.state() == State::kEmpty || word.id() != id) continue;
        held.extents++;
        (word.state() == State::kFree ? held.free_pages : held.pages) += word.pages();
    }
    return held;
}

// --- the validator -------------------------------------------------------------------------------------

// The word as it would be if every armed intent were settled now.
OwnerWord Steward::as_settled(uint32_t descriptor) const {
    const OwnerWord word = table_.owner(descriptor);
    if (word.state() != State::kEmbryo) return word;
    for (uint32_t id = 1; id < kIdCount; id++) {
        const Intent& intent = table_.slot(id).intent;
        const IntentKind kind = intent.kind();
        if (kind == IntentKind::kNone || intent.right != descriptor) continue;
        const bool committed = table_.owner(intent.left % kMaxExtents).bits == intent.after;
        if ((kind == IntentKind::kSplit) == committed)
            return word.next(static_cast<State>(uint32_t{intent.settled_state}), word.id());
    }
    return word.next(State::kEmpty, kNobody);
}

std::vector<Extent> Steward::extents_of(uint32_t slab) const {
    std::vector<PlacedExtent> found;
    for (uint32_t i = 0; i < table_.extent_limit(); i++) {
        if (table_.owner(i).state() == State::kEmpty || table_.extent(i).slab != slab) continue;
        const OwnerWord word = as_settled(i);
        if (word.state() != State::kEmpty) found.push_back(table_.placed({i, word}));
    }
    std::sort(found.begin(), found.end());
    std::vector<Extent> extents;
    for (const PlacedExtent& p : found) extents.push_back(p.extent);
    return extents;
}

namespace {

void add_run(SlabSummary& summary, const SlabSummary::Run& run, size_t runs_max) {
    if (run.state == State::kFree) {
        summary.free_pages += run.pages;
        summary.free_runs++;
        summary.largest_free_run = std::max(summary.largest_free_run, run.pages);
    } else if (run.state != State::kOwned || run.id != kMmuId) {
        summary.owners[run.id] += run.pages;
    }
    if (summary.runs.size() < runs_max) summary.runs.push_back(run);
}

SlabSummary summary_of(uint32_t slab, std::vector<PlacedExtent>& extents, size_t runs_max) {
    SlabSummary summary{slab, extents.size()};
    std::sort(extents.begin(), extents.end());
    SlabSummary::Run run{0, State::kEmpty, kNobody};
    for (const auto& [address, extent] : extents) {
        const SlabSummary::Run next{extent.word.pages(), extent.word.state(), extent.word.id()};
        if (run.pages > 0 && next.state == run.state && next.id == run.id) {
            run.pages += next.pages;
            continue;
        }
        if (run.pages > 0) add_run(summary, run, runs_max);
        run = next;
    }
    if (run.pages > 0) add_run(summary, run, runs_max);
    return summary;
}

}  // namespace

std::vector<SlabSummary> Steward::summaries(const std::vector<uint32_t>& slabs, size_t runs_max) const {
    std::unordered_map<uint32_t, std::vector<PlacedExtent>> found;
    std::vector<bool> wanted(kMaxSlabs);
    for (const uint32_t slab : slabs)
        if (table_.has_slab(slab)) wanted[slab % kMaxSlabs] = true;
    for (uint32_t i = 0; i < table_.extent_limit(); i++) {
        const uint32_t slab = table_.extent(i).slab;
        if (!wanted[slab % kMaxSlabs] || table_.owner(i).state() == State::kEmpty) continue;
        const OwnerWord word = as_settled(i);
        if (word.state() != State::kEmpty) found[slab].push_back(table_.placed({i, word}));
    }
    std::vector<SlabSummary> summaries;
    for (const uint32_t slab : slabs)
        if (const auto extents = found.find(slab); extents != found.end())
            summaries.push_back(summary_of(slab, extents->second, runs_max));
    return summaries;
}

std::vector<PlacedExtent> Steward::sealed_in(uint32_t slab, uint32_t number) const {
    std::vector<PlacedExtent> sealed;
    for (const Extent& e : extents_of(slab)) {
        const bool has_owner = (e.word.state() == State::kOwned && e.word.id() != kMmuId) ||
                               e.word.state() == State::kInFlight || e.word.is_frozen();
        if (has_owner && table_.seal(e.descriptor) == number) sealed.push_back(table_.placed(e));
    }
    return sealed;
}

std::vector<std::pair<PlacedExtent, uint32_t>> Steward::read_in(uint32_t slab) const {
    std::vector<std::pair<PlacedExtent, uint32_t>> read;
    for (uint32_t i = 0; i < table_.reading_limit(); i++) {
        const ReadingWord reading = table_.reading_word(i);
        const Extent e{reading.descriptor(), table_.owner(reading.descriptor())};
        if (reading.bits != 0 && e.word.is_frozen() && table_.extent(e.descriptor).slab == slab)
            read.emplace_back(table_.placed(e), reading.id());
    }
    return read;
}

std::optional<Extent> Steward::extent_at(uint64_t address, uint32_t hint) const {
    const auto looked_at = [&](uint32_t i) -> std::optional<Extent> {
        const uint64_t start = table_.extent(i).address;
        const OwnerWord word = as_settled(i);
        if (address < start || address - start >= word.pages() * kPageBytes) return std::nullopt;
        return table_.has_slab(table_.extent(i).slab) ? std::optional<Extent>({i, word}) : std::nullopt;
    };
    const uint32_t limit = table_.extent_limit();
    std::optional<Extent> found = hint < limit ? looked_at(hint) : std::nullopt;
    for (uint32_t i = 0; i < limit && !found; i++) found = looked_at(i);
    return found;
}

std::vector<std::string> Steward::audit() const {
    std::vector<std::string> problems;
    char line[200];
    std::unordered_map<uint32_t, std::vector<PlacedExtent>> by_slab;
    for (uint32_t i = 0; i < table_.extent_limit(); i++) {
        const OwnerWord word = as_settled(i);
        if (word.state() == State::kEmpty) continue;
        const uint32_t slab = table_.extent(i).slab;
        if (!table_.has_slab(slab)) {
            std::snprintf(line, sizeof line, "extent %u lies in slab %u, which is not there", i, slab);
            problems.emplace_back(line);
        } else if (static_cast<uint32_t>(word.state()) >= kStateCount || word.id() == kNobody) {
            std::snprintf(line, sizeof line, "extent %u has no owner: word %#lx", i, word.bits);
            problems.emplace_back(line);
        }
        by_slab[slab].push_back(table_.placed({i, word}));
    }
    for (uint32_t index = 0; index < table_.slab_limit(); index++) {
        const SlabRecord& record = table_.slab_record(index);
        const uint32_t id_plus_one = record.id_plus_one.load();
        if (id_plus_one == 0) continue;
        auto& extents = by_slab[id_plus_one - 1];
        std::sort(extents.begin(), extents.end());
        uint64_t expected = record.address;
        for (const auto& [address, extent] : extents) {
            if (address != expected) {
                std::snprintf(line, sizeof line, "slab %u: pages at %#lx have %s owner (next extent at %#lx)",
                              id_plus_one - 1, std::min(address, expected),
                              address > expected ? "no" : "more than one", address);
                problems.emplace_back(line);
            }
            expected = address + extent.word.pages() * kPageBytes;
        }
        if (expected != record.address + record.pages * kPageBytes) {
            std::snprintf(line, sizeof line, "slab %u: its extents end at %#lx, it at %#lx", id_plus_one - 1,
                          expected, record.address + record.pages * kPageBytes);
            problems.emplace_back(line);
        }
    }
    return problems;
}

}  // namespace bequest
