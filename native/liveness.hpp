// Lifelines: how the end of a process is noticed within a fraction of a millisecond, and how one waits for
// it.
//
// Theory of operation. An attached process has one small thread of its own for this. It keeps the robust
// futex of the process's slot: a word that holds its thread id, and that stands in the robust list it has
// registered with the kernel. When the thread ends, for whatever reason, the kernel marks the word
// (FUTEX_OWNER_DIED) and wakes one waiter on it, long before it takes the address space apart. That a
// lifeline has broken is a *hint*: it speaks of one thread, others of the process may still run for a moment;
// and after exec the process lives on as somebody else. Who leaves in good order sets the word to 0 first.
//
// While somebody watches (`Slot.watched`), the thread counts `Slot.beats` up every 10 ms: a stopped process
// is silent. One that waits for ever in a deadlock is not, for this thread has no part in it. So the process
// may say by when it will have got on; when that time has passed, the thread marks the count instead. It also
// closes what was stolen (lookout.hpp).
//
// Who wants to know at once keeps a `Vigil`, in the thread that is to act: nobody has to pass the news on.
// The kernel wakes one of those who wait on a word, who wakes the others. It may be somebody who does not, as
// he is about to die himself; so a vigil also looks now and then.
#pragma once

#include <linux/futex.h>
#include <pthread.h>
#include <sys/types.h>

#include <cstdint>
#include <mutex>
#include <optional>

#include "lookout.hpp"

namespace bequest {

constexpr int64_t kBeatInterval_ns = 10'000'000;
constexpr uint32_t kStuck = 1u << 31;  // in `Slot.beats`: it has not got on by the time it gave

// Keeps the word of one slot, whose table must stay mapped meanwhile.
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
    struct Node {  // of the robust list, which has one
        Node* next;
    };
    struct List {  // the kernel's struct robust_list_head
        Node* first;
        long futex_offset;
        Node* pending;
    };
    static void* run(void* self);
    void hold_line();
    void drop_line();
    void beat();
    uint32_t next_beat() const;

    Slot& slot_;
    Lookout lookout_;
    pid_t owner_;
    uint32_t held_ = 0;  // what the word says while it is well
    pthread_t thread_;
    Shared<uint32_t> phase_{0};
    Shared<uint32_t> leaving_{0};
    Shared<int64_t> expected_by_{0};
    Node node_;
    List list_;
};

// How many want the process to beat.
void set_watchers(Slot& slot, uint32_t watchers);

// Whether the kernel has marked it.
bool is_broken(const Slot& slot);

enum class LineEvent : uint32_t { kDied = 1, kLeft = 2 };

class Vigil {
public:
    struct End {
        uint32_t id;
        uint64_t incarnation;
        LineEvent event;
    };
    // Over one bearer at a time, from any thread. A line that has not begun yet is waited for. Of one whose
    // id another bears by now nothing is told. The table must stay mapped until the vigil is kept over
    // another, or has ended.
    void keep(Slot& slot, uint32_t id, uint64_t incarnation);
    void nudge();  // has `wait` return, from any thread
    // The end of the line, which is told once; or nothing, after a nudge. One thread waits.
    std::optional<End> wait();

private:
    std::optional<End> look(futex_waitv* waits, size_t& count);

    std::mutex lock_;  // of these three
    Slot* slot_ = nullptr;
    End end_{};
    bool has_begun_ = false;
    Shared<uint32_t> news_{0};
    uint32_t heard_ = 0;
};

}  // namespace bequest
