#include "v2p_table.hpp"

#include <cassert>
#include <cstring>

namespace bequest {

#ifdef BEQUEST_STEP_HOOK
void (*step_hook)(const char* where) = nullptr;
void (*read_hook)(const void* field) = nullptr;
void (*write_hook)(const void* field) = nullptr;
#endif

namespace {

constexpr bool _ = false, X = true;
// From (row) to (column).            EMPTY EMBRYO FREE OWNED IN_FLIGHT FROZEN THAWING
constexpr bool kLegal[kStateCount][kStateCount] = {
    /* EMPTY     */ {_, X, X, _, X, _, _},  // prepared for a split; a new slab; a slab that arrives granted
    /* EMBRYO    */ {X, _, X, X, _, _, _},  // undone or absorbed; completed on either side
    /* FREE      */ {X, X, X, X, _, _, _},  // its slab goes; merge; split; alloc
    /* OWNED     */ {X, X, X, X, X, X, _},  // its slab moves away; merge; free; split, steal; grant; freeze
    /* IN_FLIGHT */ {_, _, X, X, _, _, _},  // its receiver died; accepted
    /* FROZEN    */ {_, _, _, X, _, X, X},  // it failed; steal, left to its readers; is it read?
    /* THAWING   */ {_, _, _, X, _, X, _},  // it is not; it is, or was stolen
};

bool legal(OwnerWord from, OwnerWord to) {
    const auto row = static_cast<uint32_t>(from.state()), column = static_cast<uint32_t>(to.state());
    return row < kStateCount && column < kStateCount && kLegal[row][column];
}

uint64_t life_word(Life life, uint32_t incarnation) {
    return uint64_t{incarnation} << 2 | static_cast<uint64_t>(life);
}

void arm(Intent& intent, IntentKind kind, uint32_t left, uint32_t right, OwnerWord before, OwnerWord after) {
    intent.left = left;
    intent.right = right;
    intent.settled_state = static_cast<uint32_t>(before.state());
    intent.before = before.bits;
    intent.after = after.bits;
    const uint32_t serial = (intent.armed.load() >> 2) + 1;
    intent.armed.store(serial << 2 | static_cast<uint32_t>(kind));
    BEQUEST_STEP("intent armed");
}

// By an exchange, which nothing passes: the next arming's fields are not written before it.
void disarm(Intent& intent) { intent.armed.exchange(intent.armed.load() & ~3u); }

}  // namespace

void Table::format(uint32_t group_id) {
    TableHeader& h = header();  // fresh shared memory is zero, and zero means empty everywhere
    h.version = kTableVersion;
    h.group_id = group_id;
    h.table_bytes = kTableBytes;
    h.magic = kTableMagic;
}

bool Table::is_formatted() const {
    const TableHeader& h = header();
    return h.magic == kTableMagic && h.version == kTableVersion && h.table_bytes == kTableBytes;
}

uint32_t Table::extent_limit() const {
    const uint32_t used = header().blocks_used.load();
    return (used < kBlockCount ? used : kBlockCount) * kExtentsPerBlock;
}

uint32_t Table::slab_limit() const {
    const uint32_t used = header().slabs_used.load();
    return used < kMaxSlabs ? used : kMaxSlabs;
}

uint32_t Table::reading_limit() const {
    const uint32_t used = header().readings_used.load();
    return used < kMaxReadings ? used : kMaxReadings;
}

// Whatever stands there: who has which id is for the Rack MMU's books to say, and a member may write
// anything.
void Table::admit(uint32_t id, uint32_t incarnation, uint32_t os_pid, const char* name) {
    Slot& s = slot(id);
    s.os_pid = os_pid;
    std::strncpy(s.name, name, kNameBytesMax);
    s.name[kNameBytesMax] = 0;
    s.sleepers.store(0);
    s.space_waiters.store(0);
    s.rescan.store(0);
    s.revocations.store(0);
    s.mends.store(0);
    s.heir.store(kNobody);
    s.openings.store(0);
    s.parting.store(0);
    s.lifeline.store(0);
    s.watched.store(0);
    s.beats.store(0);
    s.grants = s.granted_pages = s.accepts = s.allocs = s.frees = 0;
    s.reads = s.read_pages = s.steals = s.resumes = 0;
    s.life.store(life_word(Life::kLive, incarnation));
}

void Table::mark_dead(uint32_t id) { slot(id).life.store(life_word(Life::kDead, incarnation(id))); }

void Table::vacate(uint32_t id) {
    for (uint32_t i = 0; i < kBlockCount; i++) {  // its empty descriptors are anybody's now
        uint64_t expected = id;
        block(i).compare_exchange_strong(expected, kNobody);
    }
    slot(id).life.store(life_word(Life::kEmpty, incarnation(id)));
}

bool Table::may_change(OwnerWord from, State to) const { return legal(from, from.next(to, from.id())); }

bool Table::change(uint32_t descriptor, OwnerWord from, OwnerWord to) const {
    assert(legal(from, to) && "a transition that the table does not know");
    assert(to.epoch() != from.epoch() && "an owner word that does not move on");
    const bool done = extent(descriptor).owner.compare_exchange_strong(from.bits, to.bits);
    BEQUEST_STEP("owner word changed");
    return done;
}

bool Table::change(Extent& e, State state, uint32_t id) const {
    const OwnerWord next = e.word.next(state, id);
    if (!change(e.descriptor, e.word, next)) return false;
    e.word = next;
    return true;
}

bool Table::define(const Extent& e, uint64_t nbytes, uint32_t flags) const {
    Shared<uint64_t>& details = extent(e.descriptor).details;
    uint64_t seen = details.load();
    do {
        if (!(owner(e.descriptor) == e.word)) return false;
    } while (!details.compare_exchange_weak(seen, Details::make(nbytes, flags, e.word.epoch()).bits));
    BEQUEST_STEP("details defined");
    return true;
}

bool Table::set_seal(const Extent& e, uint32_t number) const {
    Shared<uint64_t>& seal = extent(e.descriptor).seal;
    uint64_t seen = seal.load();
    do {
        if (!(owner(e.descriptor) == e.word)) return false;
    } while (!seal.compare_exchange_weak(seen, Seal::make(number, e.word.epoch()).bits));
    BEQUEST_STEP("seal set");
    return true;
}

// Whoever was to set it before us has done so by now, and then we have that; or finds our stamp.
void Table::renew_seal(const Extent& e) const {
    Shared<uint64_t>& seal = extent(e.descriptor).seal;
    uint64_t seen = seal.load();
    do {
        if (!(owner(e.descriptor) == e.word)) return;
    } while (!seal.compare_exchange_weak(seen, Seal::make(Seal{seen}.number(), e.word.epoch()).bits));
}

void Table::mark_stolen(uint32_t descriptor, OwnerWord stolen, uint32_t victim) const {
    Descriptor& d = extent(descriptor);
    d.stolen_from = victim;
    d.stolen_incarnation = incarnation(victim);
    d.stolen_epoch = static_cast<uint32_t>(stolen.epoch());
}

bool Table::bears_mark(const Extent& e, uint32_t victim, uint32_t victim_incarnation) const {
    const Descriptor& d = extent(e.descriptor);
    return d.stolen_epoch == e.word.epoch() && d.stolen_from == victim &&
           d.stolen_incarnation == victim_incarnation;
}

bool Table::awaits_adoption(const Extent& e) const {
    const Descriptor& d = extent(e.descriptor);
    return d.stolen_epoch == e.word.epoch() && d.stolen_from != kNobody && d.stolen_from != e.word.id();
}

std::optional<Extent> Table::split(uint32_t self, Extent& left, uint64_t pages, uint32_t empty) const {
    const State state = left.word.state();
    const uint64_t total = left.word.pages();
    assert(pages > 0 && pages < total);
    Descriptor& l = extent(left.descriptor);
    Descriptor& r = extent(empty);
    const OwnerWord unused = owner(empty);
    if (unused.state() != State::kEmpty) return std::nullopt;

    const OwnerWord after = left.word.next(state, left.word.id(), pages);
    const uint64_t left_bytes = pages * kPageBytes;
    r.address = l.address + left_bytes;
    const uint64_t bytes = nbytes(left);
    // The left side's own need no change: it has no more than its pages hold.
    r.details.store(
        Details::make(bytes > left_bytes ? bytes - left_bytes : 0, flags(left.descriptor), unused.epoch())
            .bits);
    r.slab = l.slab;
    r.birth = l.birth;
    r.seal.store(Seal::make(seal(left.descriptor), unused.epoch()).bits);
    Intent& intent = slot(self).intent;
    const OwnerWord embryo = unused.next(State::kEmbryo, left.word.id(), total - pages);
    // Armed before the embryo exists: whoever settles us may then find either.
    arm(intent, IntentKind::kSplit, left.descriptor, empty, left.word, after);
    if (!change(empty, unused, embryo)) {
        disarm(intent);
        return std::nullopt;
    }
    if (!change(left.descriptor, left.word, after)) {  // the commit point
        change(empty, embryo, embryo.next(State::kEmpty, kNobody));
        disarm(intent);
        return std::nullopt;
    }
    left.word = after;
    Extent right{empty, embryo.next(state, left.word.id())};
    change(empty, embryo, right.word);  // unless the Rack MMU has done it for us, see theft.cpp
    disarm(intent);
    BEQUEST_STEP("intent disarmed");
    return right;
}

bool Table::adjacent(const Extent& left, const Extent& right) const {
    const Descriptor &l = extent(left.descriptor), &r = extent(right.descriptor);
    return l.slab == r.slab && l.address + left.word.pages() * kPageBytes == r.address;
}

// The left side is full if the right one has any bytes, and has all of them if not.
uint64_t Table::merged_bytes(const Extent& left, const Extent& right) const {
    const uint64_t bytes = nbytes(right);
    return bytes == 0 ? nbytes(left) : left.word.pages() * kPageBytes + bytes;
}

bool Table::merge(uint32_t self, Extent& left, Extent& right) const {
    const State state = left.word.state();
    const uint32_t id = left.word.id();
    assert(right.word.is(state, id));
    if (!adjacent(left, right)) return false;   // they were, when the caller looked: one has gone since
    const bool owned = state == State::kOwned;  // else the next alloc says what they are
    if (owned && flags(left.descriptor) != flags(right.descriptor)) return false;
    if (owned && seal(left.descriptor) != seal(right.descriptor)) return false;
    const OwnerWord after = left.word.next(state, id, left.word.pages() + right.word.pages());
    const OwnerWord embryo = right.word.next(State::kEmbryo, id);
    Intent& intent = slot(self).intent;

    arm(intent, IntentKind::kMerge, left.descriptor, right.descriptor, left.word, after);
    if (!change(right.descriptor, right.word, embryo)) {
        disarm(intent);
        return false;
    }
    const bool defined = !owned || define(left, merged_bytes(left, right), flags(left.descriptor));
    if (!defined || !change(left.descriptor, left.word, after)) {  // the commit point
        right.word = embryo.next(state, id);
        change(right.descriptor, embryo, right.word);  // or the Rack MMU has done it, to the same word
        disarm(intent);
        return false;
    }
    left.word = after;
    change(right.descriptor, embryo, embryo.next(State::kEmpty, kNobody));
    disarm(intent);
    BEQUEST_STEP("intent disarmed");
    return true;
}

// A return list is pushed at by many and drained whole by its home, so that its head needs no tag.
// `linked` names who put an extent on a list, or is about to: it is pushed once however many think they
// should, its descriptor is not used for another extent meanwhile (DescriptorPool), and when a pusher dies
// half-way its home can tell (Arena::rescan).
bool Table::link(uint32_t pusher, uint32_t descriptor) const {
    uint32_t nobody = 0;
    const bool done = extent(descriptor).linked.compare_exchange_strong(nobody, pusher + 1);
    BEQUEST_STEP("return linked");
    return done;
}

void Table::push(uint32_t home, uint32_t descriptor) const {
    Shared<uint32_t>& list = slot(home).returns;
    uint32_t first = list.load();
    do {
        extent(descriptor).next.store(first);
    } while (!list.compare_exchange_weak(first, descriptor + 1));
    BEQUEST_STEP("return pushed");
}

void Table::push_return(uint32_t pusher, uint32_t home, uint32_t descriptor) const {
    if (link(pusher, descriptor)) push(home, descriptor);
}

std::vector<uint32_t> Table::drain_returns(uint32_t home) const {
    std::vector<uint32_t> drained;
    uint32_t link = slot(home).returns.exchange(0);
    // A sane list is no longer than the table; a hostile member's may be a loop.
    while (link != 0 && link <= kMaxExtents && drained.size() < kMaxExtents) {
        Descriptor& d = extent(link - 1);
        drained.push_back(link - 1);
        link = d.next.load();
        d.linked.store(0);
        BEQUEST_STEP("return drained");
    }
    return drained;
}

// Linked before it is free: once it is, its slab may go, and its descriptor must not become another extent,
// of another home, while we are on our way to this one's list. Who has linked it instead of us will push it,
// and its home looks at the word after it has taken it off the list: so either it sees our change or we link
// it after.
bool Table::free(uint32_t self, Extent& e) const {
    assert(e.word.state() == State::kOwned);
    const uint32_t home = home_of(extent(e.descriptor).address);
    if (home == self || life(home) != Life::kLive) return change(e, State::kFree, home);
    const bool linked = link(self, e.descriptor);
    const bool freed = change(e, State::kFree, home);
    if (linked || (freed && link(self, e.descriptor))) push(home, e.descriptor);
    return freed;
}

// --- DescriptorPool --------------------------------------------------------------------------

std::optional<uint32_t> DescriptorPool::take() {
    for (;;) {
        while (!empties_.empty()) {
            const uint32_t candidate = empties_.back();
            empties_.pop_back();
            if (is_unused(candidate)) return candidate;
        }
        // Others may have emptied descriptors of ours. Looking costs as much as there are blocks, so it waits
        // until there are a quarter more.
        const bool look = claimed_since_look_ * 4 > blocks_.size();
        if (look) look_again();
        if (empties_.size() >= kExtentsPerBlock / 8) continue;
        if (claim_block()) continue;
        if (!look) look_again();
        if (empties_.empty()) return std::nullopt;
    }
}

void DescriptorPool::look_again() {
    claimed_since_look_ = 0;
    empties_.clear();
    for (uint32_t block : blocks_) add_empties_of(block);
}

bool DescriptorPool::claim_block() {
    TableHeader& header = table_.header();
    for (uint32_t i = 0; i < kBlockCount; i++) {
        uint64_t nobody = kNobody;
        if (table_.block(i).load() != kNobody) continue;
        if (!table_.block(i).compare_exchange_strong(nobody, id_)) continue;
        uint32_t used = header.blocks_used.load();
        while (used < i + 1 && !header.blocks_used.compare_exchange_weak(used, i + 1)) {
        }
        blocks_.push_back(i);
        claimed_since_look_++;
        add_empties_of(i);
        if (!empties_.empty()) return true;
    }
    return false;
}

void DescriptorPool::add_empties_of(uint32_t block) {
    const uint32_t first = block * kExtentsPerBlock;
    for (uint32_t i = first + kExtentsPerBlock; i-- > first;)
        if (is_unused(i)) empties_.push_back(i);
}

// On its way home, or on a list there, it is still needed although its pages may have gone.
bool DescriptorPool::is_unused(uint32_t descriptor) const {
    return table_.owner(descriptor).state() == State::kEmpty && table_.extent(descriptor).linked.load() == 0;
}

}  // namespace bequest
