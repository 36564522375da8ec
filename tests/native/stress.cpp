// Real threads on one table: no scheduler, no fibers, and ThreadSanitizer sees every access.
//
// Each process is a thread with an Attachment and a fake address space. A thread may end at any time, as if
// its process had died between two acts; the Rack MMU's thread buries it and gives the id to another, takes
// idle slabs and adds new ones, and audits while all that goes on (what it then sees may be out of date, but
// must not crash). Whoever comes to own a page writes its id on it, outside the table: two at once are seen
// at once.
#include <sys/mman.h>

#include <array>
#include <atomic>
#include <cassert>
#include <mutex>
#include <random>
#include <thread>

#include "checkers.hpp"
#include "doorbell.hpp"
#include "scenario.hpp"

namespace bequest::tests {

namespace {

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int kActs = 2'000;
#else
constexpr int kActs = 100'000;
#endif
constexpr uint32_t kProcesses = 4, kLives = 12, kSlabPages = 16, kSlabsEach = 8;
constexpr uint32_t kMailbox = kFirstMailboxId;
constexpr uint64_t kPagesEach = kSlabsEach * kSlabPages;

class Rack {
public:
    Rack() : table(map()), steward(table) {
        table.format(1);
        table.admit(kMailbox, 1, 0, "mailbox");
    }
    ~Rack() { munmap(&table.header(), kTableBytes); }

    void complain(const std::string& what) {
        const std::lock_guard lock(complaints);
        if (wrong.empty()) wrong = what;
    }
    // The pages' other owner word, which must always agree with whoever acts.
    void take(uint32_t id, uint64_t address, uint64_t pages) { mark(address, pages, 0, id); }
    void give(uint32_t id, uint64_t address, uint64_t pages) { mark(address, pages, id, 0); }
    void forget(uint32_t dead) {
        for (auto& of_home : marks)
            for (auto& page : of_home) {
                uint32_t owner = dead;
                page.compare_exchange_strong(owner, 0);
            }
    }

    Table table;
    Steward steward;
    std::atomic<bool> ended[kProcesses + 1] = {};
    std::atomic<uint32_t> incarnations[kProcesses + 1] = {};
    std::atomic<uint32_t> mailbox{1};  // its incarnation
    std::atomic<bool> over{false};
    std::array<std::array<std::atomic<uint32_t>, kPagesEach>, kProcesses + 1> marks = {};
    std::mutex complaints;
    std::string wrong;

private:
    static void* map() {
        void* at = mmap(nullptr, kTableBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        assert(at != MAP_FAILED);
        return at;
    }
    void mark(uint64_t address, uint64_t pages, uint32_t from, uint32_t to) {
        const uint32_t home = home_of(address);
        const uint64_t first = (address - kWindowBase - home * kProcessSpaceBytes) / kPageBytes;
        for (uint64_t i = first; i < first + pages; i++) {
            uint32_t seen = from;
            if (!marks[home][i].compare_exchange_strong(seen, to))
                complain(at(address) + ": " + std::to_string(from ? from : to) + " comes upon " +
                         std::to_string(seen));
        }
    }
};

uint64_t slab_address(uint32_t home, uint32_t index) {
    return kWindowBase + home * kProcessSpaceBytes + index * kSlabPages * kPageBytes;
}

// One life of one process: some acts, in an order of chance, on what it holds.
class Process {
public:
    Process(Rack& rack, uint32_t id, uint32_t seed)
        : rack_(rack),
          id_(id),
          random_(seed),
          me_(rack.table, id, std::make_shared<AddressSpace>(), [](uint32_t) { return OpenedSlab{-1, {}}; }) {
    }

    void live(int acts) {
        for (int i = 0; i < acts; i++) act();
    }
    // Nothing of what others send may stay behind.
    bool clear_up() {
        bool any = accept(id_) + accept(kMailbox) > 0;
        for (; !held_.empty(); any = true) free();
        return any;
    }
    uint64_t alloc_everything() {
        uint64_t pages = 0;
        while (me_.alloc({1, false}, kPageBytes)) pages++;
        return pages;
    }

private:
    void act() {
        switch (random_() % 8) {
        case 0:
        case 1:
            return alloc();
        case 2:
            return grant();
        case 3:
            return grant();
        case 4:
            return (void)accept(random_() % 2 ? id_ : kMailbox);
        case 5:
            return free();
        case 6:
            return split_and_merge();
        default:
            return send_or_wait();
        }
    }
    void alloc() {
        const uint64_t pages = 1 + random_() % 4;
        const auto extent = held_.size() < 24 ? me_.alloc({pages, false}, pages * kPageBytes) : std::nullopt;
        if (extent) hold(*extent);
    }
    void hold(const Extent& e) {
        rack_.take(id_, me_.address(e), e.word.pages());
        held_.push_back(e);
    }
    Extent let_go() {
        std::swap(held_[random_() % held_.size()], held_.back());
        const Extent e = held_.back();
        held_.pop_back();
        rack_.give(id_, me_.address(e), e.word.pages());
        return e;
    }
    void free() {
        if (!held_.empty() && !me_.free(let_go())) rack_.complain("a region could not be freed");
    }
    Peer somebody() {
        const uint32_t id = 1 + random_() % (kProcesses + 1);
        if (id > kProcesses) return {kMailbox, rack_.mailbox.load()};
        return {id, rack_.incarnations[id].load()};
    }
    void grant() {
        const size_t count = std::min<size_t>(held_.size(), 1 + random_() % 3);
        std::vector<Extent> batch;
        for (size_t i = 0; i < count; i++) batch.push_back(let_go());
        if (batch.empty()) return;
        const GrantResult result = me_.grant(somebody(), batch, "stress", 1 + random_() % kInboxCells);
        if (result.status == GrantStatus::kLost) rack_.complain("a region was lost");
        for (size_t i = result.granted; i < batch.size(); i++) hold(batch[i]);
    }
    size_t accept(uint32_t inbox) {
        const auto accepted = me_.accept(inbox, 1 + random_() % 3);
        for (const Accepted& a : accepted) {
            if (a.tag != "stress") rack_.complain("a message was told as '" + a.tag + "'");
            if (a.extent.descriptor != kNoDescriptor) hold(a.extent);
        }
        return accepted.size();
    }
    void split_and_merge() {
        if (held_.empty()) return;
        Extent left = held_.back();
        if (left.word.pages() == 1) return;
        const auto right = me_.split(left, 1 + random_() % (left.word.pages() - 1));
        held_.back() = left;
        if (!right) return;
        Extent other = *right;
        if (random_() % 2 == 0) {
            held_.push_back(other);
        } else if (me_.merge(left, other)) {
            held_.back() = left;
        } else {
            rack_.complain("two halves of one region could not be merged");
        }
    }
    void send_or_wait() {
        if (random_() % 2 == 0) return (void)me_.send(somebody(), "stress");
        Slot& slot = rack_.table.slot(id_);
        const Inbox inbox(rack_.table, id_);
        wait_until([&] { return inbox.ready(); }, slot.doorbell, slot.sleepers, 1'000, 50'000);
    }

    Rack& rack_;
    uint32_t id_;
    std::mt19937 random_;
    Attachment me_;
    std::vector<Extent> held_;
};

bool add_slab(Rack& rack, uint32_t home, uint32_t index) {
    const uint32_t slab = home * kSlabsEach + index;
    return rack.steward.add_slab({slab, slab_address(home, index), kSlabPages, 0, false, home});
}

// Four processes and an auditor; in the end everything is freed, and every page has come home.
std::string everything_comes_home() {
    Rack rack;
    std::vector<std::unique_ptr<Process>> lives;
    for (uint32_t id = 1; id <= kProcesses; id++) {
        rack.table.admit(id, 1, 1, "a thread");
        rack.incarnations[id].store(1);
        for (uint32_t i = 0; i < kSlabsEach; i++) add_slab(rack, id, i);
        lives.push_back(std::make_unique<Process>(rack, id, id));
    }
    std::vector<std::thread> threads;
    for (auto& life : lives) threads.emplace_back([&life] { life->live(kActs); });
    std::thread auditor([&rack] {
        while (!rack.over.load()) {
            rack.steward.audit();
            rack.steward.idle_slabs();
            for (uint32_t id = 1; id <= kProcesses; id++) rack.steward.holdings(id);
        }
    });
    for (std::thread& thread : threads) thread.join();
    rack.over.store(true);
    auditor.join();
    for (bool any = true; any;) {
        any = false;
        for (auto& life : lives) any |= life->clear_up();
    }
    if (const auto audit = rack.steward.audit(); !audit.empty()) rack.complain(audit.front());
    for (uint32_t id = 1; id <= kProcesses; id++)
        if (const uint64_t pages = lives[id - 1]->alloc_everything(); pages != kPagesEach)
            rack.complain(std::to_string(id) + " finds " + std::to_string(pages) + " of its pages");
    return rack.wrong;
}

void run_process(Rack& rack, uint32_t id, uint32_t seed) {
    Process(rack, id, seed).live(kActs / static_cast<int>(kLives));
    rack.ended[id].store(true);
}

void bury(Rack& rack, uint32_t id) {
    rack.table.mark_dead(id);
    rack.steward.settle(id);
    rack.forget(id);
    rack.steward.release(id);
}

// Its id may go to another: nothing bears it, and no slab of its addresses is left.
bool is_gone(Rack& rack, uint32_t id) {
    rack.steward.release(id);  // what came too late
    bool any = false;
    for (uint32_t i = 0; i < kSlabsEach; i++)
        any |= rack.table.has_slab(id * kSlabsEach + i) && !rack.steward.take_slab(id * kSlabsEach + i);
    const Holdings left = rack.steward.holdings(id);
    return !any && left.extents + left.pages + left.free_pages == 0;
}

// The mailbox is closed, and its id given to another as soon as nothing bears it.
void renew_mailbox(Rack& rack) {
    rack.table.mark_dead(kMailbox);
    rack.steward.release(kMailbox);
    if (rack.steward.holdings(kMailbox).extents > 0) return;
    rack.table.vacate(kMailbox);
    rack.table.admit(kMailbox, rack.mailbox.load() + 1, 0, "mailbox");
    rack.mailbox.fetch_add(1);
}

// The Rack MMU: gives and takes slabs, buries who has ended, and gives the id to the next, kLives times.
void run_mmu(Rack& rack) {
    std::mt19937 random(7);
    std::array<std::thread, kProcesses + 1> threads;
    std::array<uint32_t, kProcesses + 1> lives = {};
    for (uint32_t left = kProcesses; left > 0;) {
        const uint32_t id = 1 + random() % kProcesses, index = random() % kSlabsEach;
        if (random() % 8 == 0) rack.steward.audit();
        if (random() % 32 == 0) renew_mailbox(rack);
        if (rack.table.life(id) == Life::kLive && rack.ended[id].load()) {
            threads[id].join();
            bury(rack, id);
        } else if (rack.table.life(id) == Life::kLive) {
            if (!add_slab(rack, id, index)) rack.steward.take_slab(id * kSlabsEach + index);
        } else if (lives[id] <= kLives && is_gone(rack, id)) {
            if (rack.table.life(id) == Life::kDead) rack.table.vacate(id);
            if (++lives[id] > kLives) {
                left--;
                continue;
            }
            rack.ended[id].store(false);
            rack.table.admit(id, lives[id], 1, "a thread");
            rack.incarnations[id].store(lives[id]);
            threads[id] = std::thread(run_process, std::ref(rack), id, static_cast<uint32_t>(random()));
        }
    }
}

// In the end everybody is dead, every slab has been taken back, and no id is borne.
std::string nothing_is_left() {
    Rack rack;
    run_mmu(rack);
    rack.table.mark_dead(kMailbox);
    rack.steward.release(kMailbox);
    for (uint32_t i = 0; i < rack.table.extent_limit(); i++)
        if (rack.table.owner(i).state() != State::kEmpty)
            rack.complain("extent " + std::to_string(i) + " is left");
    return rack.wrong;
}

}  // namespace

std::vector<Test> stress_tests() {
    return {{"stress: four processes, and everything comes home", everything_comes_home},
            {"stress: deaths and slabs that come and go, and nothing is left", nothing_is_left}};
}

}  // namespace bequest::tests
