// Lifelines: how the end of a process is noticed within a fraction of a millisecond, and how one waits for
// it.
//
// Theory of operation. An attached process has one small thread of its own for this. It keeps the robust
// futexes of the process's slot: words that hold its thread id, and that stand in the robust list it has
// registered with the kernel. When the thread ends, for whatever reason, the kernel marks the words
// (FUTEX_OWNER_DIED) and wakes one waiter on each, long before it takes the address space apart. That a
// lifeline has broken is a *hint*: it speaks of one thread, others of the process may still run for a moment;
// and after exec the process lives on as somebody else. Who leaves in good order sets the words to 0 first.
//
// While somebody watches (`Slot.watched`), the thread counts `Slot.beats` up every 10 ms: a stopped process
// is silent. One that waits for ever in a deadlock is not, for this thread has no part in it. So the process
// may say by when it will have got on; when that time has passed, the thread marks the count instead. It also
// closes what was stolen (lookout.hpp).
//
// A `DeathWatch` waits on many lifelines at once. The kernel wakes one waiter on a word, who wakes the
// others.
#pragma once

#include <pthread.h>
#include <sys/types.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "lookout.hpp"

namespace bequest {

constexpr int64_t kBeatInterval_ns = 10'000'000;
constexpr uint32_t kStuck = 1u << 31;  // in `Slot.beats`: it has not got on by the time it gave

// Keeps the words of one slot, whose table must stay mapped meanwhile.
class LifelineKeeper {
public:
    LifelineKeeper(Table table, uint32_t id);  // throws std::system_error
    ~LifelineKeeper() { leave(); }
    LifelineKeeper(const LifelineKeeper&) = delete;

    // In good order. In the child of a fork, which has no such thread, it does nothing.
    void leave();
    // By when (CLOCK_MONOTONIC) it will have said so again; 0: it promises nothing.
    void expect_by(int64_t when_ns) { expected_by_.store(when_ns); }

private:
    struct alignas(sizeof(Lifeline)) Node {  // of the robust list; as far apart as the words they stand for
        Node* next;
    };
    struct List {  // the kernel's struct robust_list_head
        Node* first;
        long futex_offset;
        Node* pending;
    };
    static void* run(void* self);
    void hold_lines();
    void drop_lines();
    void beat();
    uint32_t next_beat() const;

    Slot& slot_;
    Lookout lookout_;
    pid_t owner_;
    uint32_t held_ = 0;  // what the words say while it is well
    pthread_t thread_;
    Shared<uint32_t> phase_{0};
    Shared<uint32_t> leaving_{0};
    Shared<int64_t> expected_by_{0};
    Node nodes_[kLifelineCount];
    List list_;
};

// How many want the process to beat.
void set_watchers(Slot& slot, uint32_t watchers);

enum class LineEvent : uint32_t { kDied = 1, kLeft = 2 };

class DeathWatch {
public:
    explicit DeathWatch(LifelineUse use);  // throws std::system_error
    ~DeathWatch();
    DeathWatch(const DeathWatch&) = delete;

    // A line that has not begun yet is waited for. `key` is the caller's; it is told of once, and then
    // forgotten. The table must stay mapped until then, or until it is removed.
    void add(uint64_t key, Slot& slot);
    void remove(uint64_t key);  // what has been told already stays told
    std::vector<std::pair<uint64_t, LineEvent>> drain();
    int fd() const { return eventfd_; }  // readable while there is something to drain

private:
    class Squad;
    LifelineUse use_;
    int eventfd_;
    pid_t owner_;
    std::mutex lock_;  // of all below, and within the squads
    std::vector<std::unique_ptr<Squad>> squads_;
    std::deque<std::pair<uint64_t, LineEvent>> told_;
};

}  // namespace bequest
