// The explorer: runs a few operations in every order that can make a difference.
//
// Theory of operation. Each operation runs in a fiber. Built with BEQUEST_STEP_HOOK, the core announces every
// access to shared memory before it makes it; there the explorer may go on with another fiber. A run from a
// fresh table to the end is a schedule; after each one the explorer steps back to the last place where
// another fiber could have gone first, and runs again, depth first, until no choice is left. Nothing is
// sampled.
//
// Two runs that differ only in the order of accesses that do not touch each other (other field, or both
// reads) end alike, and one of them is enough: dynamic partial-order reduction with sleep sets (Flanagan and
// Godefroid, POPL 2005; Abdulla and others, Source sets, POPL 2014). A fiber is stopped only at fields that
// two of the operations touch and one writes; which those are is found while exploring, and when a new one
// turns up the exploration begins again.
//
// A process killed before its n-th write is an operation that ends there; what the Rack MMU does about it is
// another operation, which can begin once the first has ended. Where in between the others run is explored as
// everything else is. Death between two reads looks, to everybody, like death before the next write.
#pragma once

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "fiber.hpp"
#include "layout.hpp"

namespace bequest::tests {

constexpr int kOperationsMax = 5;
constexpr uint32_t kNever = UINT32_MAX;

struct Operation {
    std::string name;
    std::function<void()> run;
    int after = -1;               // begins when that operation has ended, or was killed
    uint32_t killed_at = kNever;  // dies before that write to shared memory, counted from 1
};

struct Exploration {
    uint64_t schedules = 0;  // run to their end and checked
    uint64_t pruned = 0;     // given up because an equivalent one had run
    bool complete = true;    // false: the limit on schedules was reached
    bool killed = false;     // some schedule reached its killing point
};

struct Violation : std::runtime_error {
    using std::runtime_error::runtime_error;
};

class Explorer {
public:
    // `memory` is what the operations share; fields outside it are private to one of them.
    Explorer(const void* memory, uint64_t bytes);
    ~Explorer();

    // `prepare` builds the world anew and says what runs in it, `check` returns what is wrong at the end of
    // each schedule. Throws Violation with the schedule that led there.
    Exploration explore(const std::function<std::vector<Operation>()>& prepare,
                        const std::function<std::string(const std::vector<bool>& killed)>& check,
                        uint64_t schedules_max);

    const std::string& name_of(int operation) const {
        return operations_[static_cast<size_t>(operation)].name;
    }
    // For the explorer's own tests: every order of all accesses, without any reduction.
    bool brute_force = false;

    bool in_operation() const { return running_ >= 0; }
    int running() const { return running_; }
    bool is_dying() const { return running_ >= 0 && runners_[running_].killed; }
    void fail(const std::string& what);  // called by a check inside a step: ends the schedule
    // All the places written since the last call: what must be cleaned for the next schedule.
    std::vector<uint64_t> take_dirty_pages();
    void note_dirty(const void* field, uint64_t bytes);
    std::string story() const;                               // the schedule so far, for a message
    std::function<std::string(const void* field)> describe;  // names a field
    // Looks at the world in the middle of things: after each BEQUEST_STEP of that operation.
    std::function<void(int operation, const char* where)> after_step;

private:
    using Clock = uint32_t[kOperationsMax];
    struct Access {
        const void* field = nullptr;
        uint32_t variable = 0;
        bool write = false;
    };
    struct Runner {
        enum State { kWaiting, kReady, kAsleep, kEnded } state = kWaiting;
        Access pending;
        Clock clock = {};
        uint32_t writes = 0;
        bool killed = false;
        const void* sleeps_on = nullptr;
        uint64_t asleep_since = 0;
    };
    struct Event {
        int runner;
        Access access;
        Clock clock;
    };
    struct Node {  // a place where somebody had to go next
        uint32_t enabled = 0, backtrack = 0, done = 0, sleep = 0;
        int chosen = -1;
        Access pending[kOperationsMax];
    };
    struct Variable {  // 1 + index of each runner's last event on it, 0: none
        uint32_t last_read[kOperationsMax] = {}, last_write[kOperationsMax] = {};
    };

    struct Step {
        size_t events;  // that had happened before it
        int runner;
        const char* where;
    };

    static void on_read(const void* field);
    static void on_write(const void* field);
    static void on_step(const char* where);
    static bool on_sleep(Shared<uint32_t>& word, uint32_t seen);
    static void on_wake(Shared<uint32_t>& word, uint32_t sleepers);

    void run_schedule();
    void start(int runner);
    void run_body(int runner);
    void access(const void* field, bool write);
    bool is_contended(const void* field, bool write);
    void forget_contention();
    void stop_at(const Access& access);
    void hand_over(int from);
    int choose(int current);
    Node new_node(int current) const;
    uint32_t inherited_sleep() const;
    void happen(int runner);
    void find_races(int runner);
    void add_backtrack(uint32_t event, int runner);
    uint32_t beginners_after(uint32_t event, int runner) const;
    void join_past(Runner& runner, int i) const;
    bool step_back();
    void unwind();
    bool sleep(Shared<uint32_t>& word, uint32_t seen);
    void wake(Shared<uint32_t>& word, uint32_t sleepers);
    static bool dependent(const Access& a, const Access& b) {
        return a.field == b.field && (a.write || b.write);
    }

    const unsigned char* memory_;
    uint64_t bytes_;
    Fiber home_;
    std::vector<std::unique_ptr<Fiber>> fibers_;
    std::vector<Operation> operations_;
    Runner runners_[kOperationsMax];
    int running_ = -1;
    bool starting_ = false, unwinding_ = false, stuck_ = false, is_pruned_ = false;
    std::string failure_;

    std::vector<Node> nodes_;
    std::vector<Event> events_;
    std::vector<Step> steps_;
    std::unordered_map<const void*, uint32_t> variable_of_;
    std::vector<Variable> variables_;

    unsigned char* contention_;  // for each 4 bytes: who touched them, whether written, whether contended
    std::vector<uint64_t> touched_;
    bool found_contention_ = false;
    unsigned char* dirty_;  // for each page
    std::vector<uint64_t> dirty_pages_;
};

}  // namespace bequest::tests
