#include "world.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cassert>
#include <cstring>

#include "doorbell.hpp"
#include "fake_address_space.hpp"

namespace bequest::tests {

namespace {

unsigned char* map_table() {
    void* at = mmap(nullptr, kTableBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                    -1, 0);
    assert(at != MAP_FAILED);
    return static_cast<unsigned char*>(at);
}

uint64_t address_of_slab(uint32_t slab, uint32_t home) {
    return kWindowBase + (uint64_t{home} << kProcessSpaceBits) + slab * kHugePageBytes;
}

}  // namespace

World::World()
    : table(nullptr), memory_(map_table()), explorer_(std::make_unique<Explorer>(memory_, kTableBytes)) {
    table = Table(memory_);
    explorer_->describe = [this](const void* field) { return describe(field); };
    explorer_->after_step = [this](int operation, const char* where) { look_at_step(operation, where); };
    clear();
}

World::~World() {
    processes.clear();
    explorer_.reset();
    munmap(memory_, kTableBytes);
}

// --- building ------------------------------------------------------------------------------------------

void World::clear() {
    processes.clear();
    page_tables.clear();
    incarnations.clear();
    held_.clear();
    reads_.clear();
    readers_.clear();
    tags_.clear();
    sent_.clear();
    received_.clear();
    heard_.clear();
    acting_.clear();
    thefts_.clear();
    being_robbed_.clear();
    robbed_in_part_.clear();
    unfinished_.clear();
    lengths_known = true;
    is_hasty = false;
    also = nullptr;
    opens_nothing = closes_nothing = nullptr;
    for (uint64_t page : explorer_->take_dirty_pages())
        std::memset(memory_ + page * kPageBytes, 0, kPageBytes);
    explorer_->note_dirty(memory_, kPageBytes);
    table.format(7);
    steward = std::make_unique<Steward>(table);
}

void World::admit(uint32_t id, uint32_t incarnation) {
    explorer_->note_dirty(&table.slot(id), sizeof(Slot));
    table.admit(id, incarnation, 1, "somebody");
    incarnations[id] = incarnation;
    held_[id].clear();
    reads_[id].clear();
    readers_[id] = {id};
    const auto space = std::make_shared<AddressSpace>();
    page_tables[space.get()] = &page_table(id);
    processes[id] =
        std::make_unique<Attachment>(table, id, space, [](uint32_t) { return OpenedSlab{-1, {}}; });
}

void World::open_mailbox(uint32_t id, std::vector<uint32_t> readers, uint32_t incarnation) {
    explorer_->note_dirty(&table.slot(id), sizeof(Slot));
    table.admit(id, incarnation, 0, "mailbox");
    incarnations[id] = incarnation;
    readers_[id] = std::move(readers);
}

void World::add_slab(uint32_t slab, uint32_t home, uint32_t pages) {
    const bool added = steward->add_slab({slab, address_of_slab(slab, home), pages, 0, false, home});
    assert(added);
    (void)added;
}

void World::split_and_merge_once(uint32_t id) {
    Extent whole = alloc(id, 2);
    const Extent right = split(id, whole, 1);
    free(id, merge(id, held(id, 0), right));
}

// As if so many messages had come and gone. Only the cells that a scenario can reach are told of it.
void World::start_ring_at(uint32_t id, uint64_t position) {
    table.slot(id).head.store(position);
    table.slot(id).tail.store(position);
    for (uint64_t p = position; p < position + 8; p++)
        table.cell(id, p).word.store(CellWord::make(CellState::kEmpty, kNobody, p / kInboxCells).bits);
}

// --- acts of processes -----------------------------------------------------------------------------------

bool World::try_alloc(uint32_t id, uint64_t pages, uint32_t flags, bool aligned) {
    const Act act(*this, id);
    const RunRequest request{pages, false, kAnyElement, aligned};
    const auto extent = processes.at(id)->alloc(request, pages * kPageBytes, flags);
    assert(!extent || !aligned || table.extent(extent->descriptor).address % kHugePageBytes == 0);
    if (extent) held_[id].push_back(*extent);
    return extent.has_value();
}

Extent World::alloc(uint32_t id, uint64_t pages, uint32_t flags) {
    const bool done = try_alloc(id, pages, flags);
    assert(done && "a scenario allocates no more than it has");
    (void)done;
    return held_[id].back();
}

void World::drop(uint32_t id, const Extent& extent) {
    std::vector<Extent>& held = held_[id];
    held.erase(std::remove_if(held.begin(), held.end(),
                              [&](const Extent& e) { return e.descriptor == extent.descriptor; }),
               held.end());
}

bool World::free(uint32_t id, Extent extent) {
    const Act act(*this, id);
    drop(id, extent);
    return processes.at(id)->free(extent);
}

Extent World::split(uint32_t id, Extent left, uint64_t pages) {
    const Act act(*this, id);
    drop(id, left);
    const auto right = processes.at(id)->split(left, pages);
    held_[id].push_back(left);
    if (!right) return {};
    held_[id].push_back(*right);
    return *right;
}

Extent World::merge(uint32_t id, Extent left, Extent right) {
    const Act act(*this, id);
    drop(id, left);
    drop(id, right);
    const bool merged = processes.at(id)->merge(left, right);
    held_[id].push_back(left);
    if (!merged) held_[id].push_back(right);
    return left;
}

Message& World::announce(uint32_t id, uint32_t to, int times) {
    sent_.push_back(
        {id, to, std::to_string(id) + "#" + std::to_string(tags_[id]++), 0, times, incarnations.at(to)});
    return sent_.back();
}

GrantStatus World::grant(uint32_t id, uint32_t to, std::vector<Extent> extents, uint64_t capacity) {
    const Act act(*this, id);
    for (const Extent& e : extents) drop(id, e);
    const size_t index = sent_.size();
    const std::string tag = announce(id, to, static_cast<int>(extents.size())).tag;
    const GrantResult result = processes.at(id)->grant({to, incarnations.at(to)}, extents, tag, capacity);
    sent_[index].at_least = sent_[index].at_most = static_cast<int>(result.granted);
    for (size_t i = result.granted; i < extents.size(); i++)
        if (processes.at(id)->still_ours(extents[i])) held_[id].push_back(extents[i]);  // else it was lost
    return result.status;
}

GrantStatus World::send(uint32_t id, uint32_t to, uint64_t capacity) {
    const size_t index = sent_.size();
    const std::string tag = announce(id, to, 1).tag;
    const GrantStatus status = processes.at(id)->send({to, incarnations.at(to)}, tag, capacity);
    sent_[index].at_least = sent_[index].at_most = status == GrantStatus::kDone;
    return status;
}

uint64_t World::begin_send(uint32_t id, uint32_t to) {
    const Inbox inbox(table, to);
    const auto position = inbox.claim(id);
    assert(position);
    inbox.seal(*position, Extent{}, incarnations.at(to), {id, incarnations.at(id)}, announce(id, to, 1).tag);
    return *position;
}

void World::end_send(uint32_t id, uint32_t to, uint64_t position) {
    Inbox(table, to).publish(position, id);
    ring_doorbell(table.slot(to), 1);
}

size_t World::sent() const {
    return static_cast<size_t>(
        std::count_if(sent_.begin(), sent_.end(), [](const Message& m) { return m.at_least > 0; }));
}

bool World::came(const std::string& tag) const {
    return std::any_of(received_.begin(), received_.end(), [&](const Message& m) { return m.tag == tag; });
}

bool World::heard_by(uint32_t id, const std::string& tag) const {
    return std::any_of(heard_.begin(), heard_.end(),
                       [&](const auto& heard) { return heard.first == id && heard.second == tag; });
}

size_t World::accept(uint32_t id, uint32_t inbox, size_t limit) {
    const Act act(*this, id);
    return receive(id, inbox, processes.at(id)->accept(inbox, limit));
}

size_t World::inherit(uint32_t id, uint32_t dead, uint32_t incarnation) {
    const Act act(*this, id);
    return receive(id, dead, processes.at(id)->inherit({dead, incarnation}, kEverything));
}

size_t World::receive(uint32_t id, uint32_t inbox, const std::vector<Accepted>& accepted) {
    for (const Accepted& a : accepted) {
        if (a.extent.descriptor != kNoDescriptor) held_[id].push_back(a.extent);
        received_.push_back({a.sender.id, inbox, a.tag});
        heard_.insert({id, a.tag});
    }
    return accepted.size();
}

size_t World::adopt(uint32_t id, uint32_t victim) {
    const Act act(*this, id);
    std::vector<Extent>& held = held_[id];
    const auto is_held = [&](const Extent& e) {
        return std::any_of(held.begin(), held.end(),
                           [&](const Extent& h) { return h.descriptor == e.descriptor && h.word == e.word; });
    };
    const std::vector<Extent> adopted = processes.at(id)->adopt({victim, incarnations.at(victim)}, is_held);
    held.insert(held.end(), adopted.begin(), adopted.end());
    return adopted.size();
}

// --- acts of the Rack MMU
// ------------------------------------------------------------------------------------

Operation World::mmu(const std::string& name, std::function<void()> act, int after) {
    // Anywhere the explorer sees it; the header has room.
    auto* busy = reinterpret_cast<Shared<uint32_t>*>(memory_ + kPageBytes / 2);
    const auto run = [busy, act = std::move(act)] {
        uint32_t idle = 0;
        while (!busy->compare_exchange_strong(idle, 1)) {
            sleep_on(*busy, 1, 0);
            idle = 0;
        }
        act();
        busy->store(0);
        wake(*busy, 1);
    };
    return {"the MMU " + name, run, after};
}

Operation World::burial(uint32_t id, int after) {
    return mmu("buries " + std::to_string(id), [this, id] { bury(id); }, after);
}

bool World::deliver(const SlabSpec& slab, uint64_t nbytes, uint32_t to) {
    const size_t index = sent_.size();
    const std::string tag = announce(kMmuId, to, 1).tag;
    lengths_known = false;
    const bool done = steward->add_slab_granted(slab, nbytes, {to, incarnations.at(to), kMmuId, tag});
    sent_[index].at_least = sent_[index].at_most = done;
    return done;
}

bool World::deliver_into(uint64_t address, uint64_t pages, uint32_t to) {
    const size_t index = sent_.size();
    const std::string tag = announce(kMmuId, to, 1).tag;
    lengths_known = false;
    const bool done = steward->deliver_into(address, pages, 1, {to, incarnations.at(to), kMmuId, tag});
    sent_[index].at_least = sent_[index].at_most = done;
    return done;
}

void World::withdraw(uint32_t id, const Extent& extent) {
    if (!steward->withdraw(extent)) return;
    drop(id, extent);
    processes.at(id)->close_pages(extent);
}

// Anywhere the explorer sees it; the header has room.
Shared<uint32_t>& World::page_table(uint32_t id) const {
    return reinterpret_cast<Shared<uint32_t>*>(memory_ + kPageBytes / 2)[id];
}

void World::mark_dead(uint32_t id) { table.mark_dead(id); }

void World::settle_and_release(uint32_t id) {
    steward->settle(id);
    steward->release(id);
}

// --- what is wrong
// ---------------------------------------------------------------------------------------------

std::string World::check() {
    Pages pages;
    std::string wrong;
    finish_thefts();
    if (also) wrong = also();
    if (wrong.empty()) wrong = check_stopped();
    if (wrong.empty()) notice_thefts();
    if (wrong.empty()) wrong = check_table(pages);
    if (wrong.empty()) wrong = check_dead();
    if (wrong.empty()) wrong = check_readings();
    if (wrong.empty()) wrong = check_table(pages);
    if (wrong.empty()) wrong = check_open(pages);
    if (wrong.empty()) receive_everything();
    if (wrong.empty()) wrong = check_messages();
    if (wrong.empty()) wrong = check_table(pages);
    if (wrong.empty()) wrong = check_beliefs(pages);
    if (wrong.empty()) wrong = check_open(pages);
    if (wrong.empty()) wrong = check_free_runs_known();
    if (wrong.empty()) wrong = check_table(pages);
    return wrong;
}

std::string World::check_table(Pages& pages) const {
    const std::string wrong = partition(table, pages);
    const std::vector<std::string> audit = steward->audit();
    if (wrong.empty() && !audit.empty()) return "only the audit complains: " + audit.front();
    if (!wrong.empty() && audit.empty()) return wrong + ", and the audit does not see it";
    return wrong;
}

// A process that is stopped inside of the core, for as long as anybody looks: the table is in order without
// it, and nothing is left that could be stolen or that waits for it in vain. Then it dies.
std::string World::check_stopped() {
    std::string wrong;
    Pages pages;
    const std::set<uint32_t> stopped = acting_;
    for (uint32_t id : stopped) {
        const bool robbed = std::any_of(thefts_.begin(), thefts_.end(),
                                        [id](const auto& theft) { return theft.second == id; });
        if (wrong.empty() && !is_dead(id)) wrong = check_table(pages);
        if (wrong.empty() && robbed && !is_dead(id)) wrong = check_stopped(id);
        acting_.erase(id);
        if (!is_dead(id)) bury(id);
    }
    return wrong;
}

std::string World::check_stopped(uint32_t id) {
    const std::string who = std::to_string(id);
    if (robbed_in_part_.count(id) == 0 && !steward->stealable(id).empty())
        return "something is left that could be stolen of " + who;
    for (const auto& [inbox, readers] : readers_)
        for (uint64_t position = 0; position < 2 * kInboxCells; position++) {
            const Cell& cell = table.cell(inbox, position);
            const CellWord held = CellWord::make(CellState::kClaimed, id, position / kInboxCells);
            if (CellWord{cell.word.load()} == held && cell.sealed_at.load() == position + 1)
                return "a cell of inbox " + std::to_string(inbox) + " waits for " + who +
                       ", which is stopped";
        }
    return "";
}

// Who was robbed comes to know sooner or later; who robbed finds what it has got.
void World::notice_thefts() {
    for (const auto& [thief, victim] : thefts_)
        if (!is_dead(thief)) adopt(thief, victim);
    for (auto& [id, held] : held_) {
        if (table.slot(id).revocations.load() == 0 || is_dead(id)) continue;
        const auto is_gone = [&](const Extent& e) { return !(table.owner(e.descriptor) == e.word); };
        for (const Extent& e : held)
            if (is_gone(e) && e.word.is_frozen()) lose(id, e);
        held.erase(std::remove_if(held.begin(), held.end(), is_gone), held.end());
        for (const Extent& e : held) processes.at(id)->open_pages(e);  // what was fenced, and not stolen
    }
}

// The dead do nothing more, so that what was settled stays settled. Memory that was sent to them too late for
// the first release is freed by the next, which the Rack MMU does for as long as anything bears their id.
std::string World::check_dead() {
    std::map<uint32_t, uint32_t> rescans;  // settling again must not help anybody to find what it has lost
    for (const auto& [id, process] : processes) rescans[id] = table.slot(id).rescan.load();
    std::string wrong;
    for (const auto& [id, incarnation] : incarnations)
        if (is_dead(id) && wrong.empty()) wrong = check_dead(id);
    for (const auto& [id, rescan] : rescans) table.slot(id).rescan.store(rescan);
    return wrong;
}

std::string World::check_dead(uint32_t id) {
    const std::vector<uint64_t> before = fingerprint();
    if (steward->settle(id) != 0) return "something of a settled process is left to settle";
    if (fingerprint() != before) return "a second settlement has changed something";
    steward->release(id);
    const std::vector<uint64_t> released = fingerprint();
    if (steward->release(id) != 0 || fingerprint() != released)
        return "a second release has changed something";
    return steward->holdings(id).pages == 0 ? "" : "the dead still own memory";
}

bool World::may_open(uint32_t id, const Page& page) const {
    const uint32_t home = home_of(table.extent(page.descriptor).address);
    if (page.state == State::kInFlight) {
        const std::vector<uint32_t>& readers = readers_.at(page.owner);
        return std::find(readers.begin(), readers.end(), id) != readers.end();
    }
    if (reads(id, page)) return true;
    return page.owner == id || (page.owner == kMmuId && home == id);  // a free run stays open at home
}

std::string World::check_open(const Pages& pages) const {
    for (const auto& [id, process] : processes) {
        if (is_dead(id)) continue;
        for (const auto& [address, page] : pages) {
            const bool open = process->space().is_open(address, kPageBytes);
            if (open && (page.state == State::kInFlight || !may_open(id, page)))
                return std::to_string(id) + " can still touch " + at(address);
            if (!open && (page.state == State::kOwned || page.state == State::kFrozen) && page.owner == id)
                return std::to_string(id) + " owns " + at(address) + " and cannot touch it";
        }
    }
    return "";
}

// At every commit: what one process may touch, no other may.
void World::look_at_step(int operation, const char* where) {
    if (std::strcmp(where, "pages opened") == 0) look_at_opened();
    if (std::strcmp(where, "owner word changed") != 0) return;
    for (uint32_t i = 0; i < table.extent_limit(); i++) {
        const OwnerWord word = table.owner(i);
        if (word.state() == State::kEmpty || word.state() == State::kEmbryo) continue;
        const uint64_t address = table.extent(i).address;
        for (const auto& [id, process] : processes) {
            if (is_dead(id) || may_open(id, {word.state(), word.id(), i})) continue;
            // Victims and heirs may be opening pages, and look at the words once they have.
            if (being_robbed_.count(id) > 0 || (acting_.count(id) > 0 && !thefts_.empty())) continue;
            for (uint64_t page = 0; page < word.pages(); page++)
                if (process->space().is_open(address + page * kPageBytes, kPageBytes))
                    explorer_->fail("when " + explorer_->name_of(operation) + " committed, " +
                                    std::to_string(id) + " could still touch " +
                                    at(address + page * kPageBytes));
        }
    }
}

void World::receive_everything() {
    for (const auto& [inbox, readers] : readers_)
        for (uint32_t reader : readers)
            while (!is_dead(reader) && !is_dead(inbox) && accept(reader, inbox) > 0) {
            }
}

std::string World::check_messages() {
    for (const auto& [inbox, readers] : readers_) {
        const std::string wrong = cells_at_rest(table, inbox);
        if (!wrong.empty()) return wrong;
        const bool some_died = is_dead(inbox) || std::any_of(readers.begin(), readers.end(),
                                                             [&](uint32_t id) { return is_dead(id); });
        for (Message& m : sent_)
            if (m.inbox == inbox && (some_died || m.incarnation != incarnations.at(inbox))) m.at_least = 0;
    }
    const std::string wrong = exactly_once(sent_, received_);
    if (!wrong.empty()) return wrong;
    std::vector<Message> alone;  // two receivers of one mailbox may each be told the later one first
    for (const Message& m : received_)
        if (readers_.at(m.inbox).size() == 1) alone.push_back(m);
    return in_order(sent_, alone);
}

std::string World::check_beliefs(const Pages& pages) const {
    for (const auto& [id, held] : held_) {
        if (is_dead(id)) continue;
        uint64_t believed = 0, owned = 0;
        for (const Extent& e : held) {
            if (!(table.owner(e.descriptor) == e.word) || !e.word.is_kept_by(id))
                return std::to_string(id) + " believes to hold extent " + std::to_string(e.descriptor);
            if (processes.at(id)->nbytes(e) == 0)
                return std::to_string(id) + " holds a region of no bytes: extent " +
                       std::to_string(e.descriptor);
            if (lengths_known && processes.at(id)->nbytes(e) != e.word.pages() * kPageBytes)
                return "extent " + std::to_string(e.descriptor) + " has lost some of its bytes";
            believed += e.word.pages();
        }
        for (const auto& [address, page] : pages)
            owned += (page.state == State::kOwned || page.state == State::kFrozen) && page.owner == id;
        if (owned != believed)
            return std::to_string(id) + " owns " + std::to_string(owned) + " pages and knows of " +
                   std::to_string(believed);
    }
    for (const auto& [address, page] : pages) {
        if (page.state == State::kInFlight) return at(address) + " is in flight for ever";
        if (page.state != State::kFree && is_dead(page.owner)) return at(address) + " belongs to the dead";
        if (page.state == State::kThawing) return at(address) + " is thawing for ever";
    }
    return "";
}

// A free run that its home does not know of is lost as surely as one that nobody owns.
std::string World::check_free_runs_known() {
    for (const auto& [id, process] : processes) {
        if (is_dead(id)) continue;
        const uint64_t free_pages = steward->holdings(id).free_pages;
        uint64_t found = 0;
        while (process->alloc({1, false}, kPageBytes)) found++;
        if (found != free_pages)
            return std::to_string(id) + " has " + std::to_string(free_pages) + " free pages and finds " +
                   std::to_string(found);
    }
    return "";
}

std::vector<uint64_t> World::fingerprint() const {
    std::vector<uint64_t> words;
    for (uint32_t i = 0; i < table.extent_limit(); i++) words.push_back(table.owner(i).bits);
    for (uint32_t i = 0; i < kMaxReadings; i++) words.push_back(table.reading(i).load());
    for (const auto& [id, readers] : readers_) {
        words.push_back(table.slot(id).head.load());
        words.push_back(table.slot(id).tail.load());
        words.push_back(table.slot(id).intent.armed.load());
        for (uint64_t p = 0; p < kInboxCells; p++)
            words.push_back(table.cell(id, table.slot(id).head.load() + p).word.load());
    }
    return words;
}

// --- telling
// ---------------------------------------------------------------------------------------------------

std::string World::describe(const void* field) const {
    const auto offset = static_cast<uint64_t>(static_cast<const unsigned char*>(field) - memory_);
    char text[80];
    if (offset >= kReadingsOffset) {
        std::snprintf(text, sizeof text, "reading %lu", (offset - kReadingsOffset) / sizeof(ReadingWord));
    } else if (offset >= kDescriptorsOffset) {
        const uint64_t inside = offset - kDescriptorsOffset;
        std::snprintf(text, sizeof text, "extent %lu +%lu%s", inside / sizeof(Descriptor),
                      inside % sizeof(Descriptor), inside % sizeof(Descriptor) == 0 ? " (owner)" : "");
    } else if (offset >= kCellsOffset) {
        const uint64_t inside = offset - kCellsOffset, index = inside / sizeof(Cell);
        std::snprintf(text, sizeof text, "inbox %lu cell %lu +%lu", index / kInboxCells, index % kInboxCells,
                      inside % sizeof(Cell));
    } else if (offset >= kSlabsOffset) {
        const uint64_t inside = offset - kSlabsOffset;
        std::snprintf(text, sizeof text, "slab %lu +%lu", inside / sizeof(SlabRecord),
                      inside % sizeof(SlabRecord));
    } else if (offset >= kSlotsOffset && offset < kBlocksOffset) {
        const uint64_t inside = offset - kSlotsOffset;
        std::snprintf(text, sizeof text, "slot %lu +%lu", inside / sizeof(Slot), inside % sizeof(Slot));
    } else {
        std::snprintf(text, sizeof text, "table +%lu", offset);
    }
    return text;
}

}  // namespace bequest::tests
