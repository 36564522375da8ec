// A small rack in one test process: one table, some processes, no kernel; and a ledger of who was told what.
//
// Every process is a real Attachment with a fake address space. The acts below do what the public face does
// with the results: the ledger says which regions each process believes to hold and which messages went and
// came, so that check() can compare beliefs, table, and open pages with each other after each schedule.
#pragma once

#include <exception>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "attachment.hpp"
#include "checkers.hpp"
#include "explorer.hpp"
#include "recovery.hpp"

namespace bequest::tests {

constexpr uint64_t kEverything = 64;  // more messages than any scenario sends

class World {
public:
    World();
    ~World();
    Explorer& explorer() { return *explorer_; }

    // --- building; a new world is an empty table ---------------------------------------------------
    void clear();
    void admit(uint32_t id, uint32_t incarnation = 1);
    void open_mailbox(uint32_t id, std::vector<uint32_t> readers, uint32_t incarnation = 1);
    void add_slab(uint32_t slab, uint32_t home, uint32_t pages);
    void split_and_merge_once(
        uint32_t id);  // so that its descriptors are at hand before anything is explored
    void start_ring_at(uint32_t id, uint64_t position);

    // --- acts of processes, kept in the ledger ------------------------------------------------------
    Extent alloc(uint32_t id, uint64_t pages, uint32_t flags = 0);
    bool try_alloc(uint32_t id, uint64_t pages, uint32_t flags = 0, bool aligned = false);
    bool free(uint32_t id, Extent extent);
    Extent split(uint32_t id, Extent left, uint64_t pages);
    Extent merge(uint32_t id, Extent left, Extent right);
    GrantStatus grant(uint32_t id, uint32_t to, std::vector<Extent> extents, uint64_t capacity = kInboxCells);
    GrantStatus send(uint32_t id, uint32_t to, uint64_t capacity = kInboxCells);
    // A message in two parts, for who wants to know what happens between them.
    uint64_t begin_send(uint32_t id, uint32_t to);
    void end_send(uint32_t id, uint32_t to, uint64_t position);
    size_t sent() const;                      // messages whose senders were told that they are under way
    bool came(const std::string& tag) const;  // it was accepted, and its receiver knows
    bool heard_by(uint32_t id, const std::string& tag) const;  // it has accepted it itself
    size_t accept(uint32_t id, uint32_t inbox, size_t limit = kEverything);
    size_t adopt(uint32_t id, uint32_t victim);
    // Frozen regions. What a process reads is known by the place of its reading.
    FrozenName freeze(uint32_t id, size_t index = 0);
    Thaw thaw(uint32_t id, size_t index = 0);
    bool read(uint32_t id, const FrozenName& name);
    void let_go(uint32_t id);  // of what it has begun to read last
    size_t readings(uint32_t id) const { return reads_.at(id).size(); }
    size_t inherit(uint32_t id, uint32_t dead, uint32_t incarnation = 1);
    Extent held(uint32_t id, size_t index = 0) const { return held_.at(id).at(index); }
    size_t holds(uint32_t id) const { return held_.at(id).size(); }
    void drop(uint32_t id, const Extent& extent);  // it knows that it no longer holds it

    // --- acts of the Rack MMU, which does one thing at a time ------------------------------------------
    Operation mmu(const std::string& name, std::function<void()> act, int after = -1);
    bool deliver(const SlabSpec& slab, uint64_t nbytes, uint32_t to);
    bool deliver_into(uint64_t address, uint64_t pages, uint32_t to);
    void withdraw(uint32_t id, const Extent& extent);  // from under its owner, as a thief would
    void mark_dead(uint32_t id);
    void settle_and_release(uint32_t id);
    void bury(uint32_t id) { mark_dead(id), settle_and_release(id); }
    Operation burial(uint32_t id, int after = -1);

    // A theft from one who may be alive, as the Rack MMU goes about it: lists, has the victim's pages closed,
    // takes, has them closed again, until nothing is new.
    void rob(uint32_t victim, uint32_t thief, int passes = 3,
             const std::vector<AddressRange>* only = nullptr);
    Operation theft(uint32_t victim, uint32_t thief, int after = -1, int passes = 3);
    // One from the dead: settled first; the thief may empty the inbox.
    void rob_the_dead(uint32_t victim, uint32_t thief);
    void fence(uint32_t victim, const std::vector<PlacedExtent>& extents);

    // What is wrong with the world now that every operation has ended.
    std::string check();
    bool lengths_known = true;  // every region is as long as its pages
    bool is_hasty = false;      // the Rack MMU does not wait for a victim that is opening memory
    // A rule of one scenario, looked at before anything else.
    std::function<std::string()> also;

    Table table;
    std::unique_ptr<Steward> steward;
    std::map<uint32_t, std::unique_ptr<Attachment>> processes;
    std::map<uint32_t, uint32_t> incarnations;

private:
    // Notes that a process is inside of the core. Who is killed there and not buried is stopped for ever.
    struct Act {
        Act(World& w, uint32_t id) : world(w), id(id) { world.acting_.insert(id); }
        ~Act() {
            if (!world.explorer_->is_dying()) world.acting_.erase(id);
        }
        World& world;
        uint32_t id;
    };
    Shared<uint32_t>& page_table(uint32_t id) const;
    size_t receive(uint32_t id, uint32_t inbox, const std::vector<Accepted>& accepted);
    std::string check_readings();
    void lose(uint32_t id, const Extent& frozen);
    bool reads(uint32_t id, const Page& page) const;
    std::string check_stopped();
    std::string check_stopped(uint32_t id);
    void notice_thefts();
    std::string describe(const void* field) const;
    std::string check_dead();
    std::string check_dead(uint32_t id);
    std::string check_table(Pages& pages) const;
    std::string check_open(const Pages& pages) const;
    std::string check_beliefs(const Pages& pages) const;
    std::string check_free_runs_known();
    void look_at_step(int operation, const char* where);
    void look_at_opened();
    void finish_thefts();
    bool is_dead(uint32_t id) const { return id != kMmuId && table.life(id) != Life::kLive; }
    bool may_open(uint32_t id, const Page& page) const;
    Message& announce(uint32_t id, uint32_t to, int times);
    std::string check_messages();
    void receive_everything();
    std::vector<uint64_t> fingerprint() const;

    unsigned char* memory_;
    std::unique_ptr<Explorer> explorer_;
    std::map<uint32_t, std::vector<Extent>> held_;
    std::map<uint32_t, std::vector<std::pair<FrozenName, HeldReading>>> reads_;
    std::map<uint32_t, std::vector<uint32_t>> readers_;  // of each inbox
    std::map<uint32_t, int> tags_;
    std::vector<Message> sent_, received_;
    std::set<std::pair<uint32_t, std::string>> heard_;  // by whom
    std::set<uint32_t> acting_;
    std::set<std::pair<uint32_t, uint32_t>> thefts_;  // (thief, victim)
    std::set<uint32_t> being_robbed_, robbed_in_part_;
    std::vector<std::pair<uint32_t, std::vector<PlacedExtent>>> unfinished_;  // by whom the last fence waits
};

}  // namespace bequest::tests
