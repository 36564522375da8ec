#include "liveness.hpp"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <csignal>

#include "doorbell.hpp"
#include "kernel.hpp"
#include "promptness.hpp"

namespace bequest {

namespace {

constexpr size_t kStackBytes = 64 << 10;
constexpr uint32_t kRuns = 1, kEnded = 2;  // phases of a keeper's thread
constexpr int64_t kForEver_ns = INT64_MAX / 2, kNudge_ns = 1'000'000, kFallbackLook_ns = 20'000'000;
constexpr int64_t kVigilLook_ns = 50'000'000;
std::atomic<bool> has_waitv{true};  // Linux 5.16

// A thread that takes no signals: they are meant for the program, and its handlers may need more stack.
pthread_t start_thread(const char* name, void* (*run)(void*), void* argument) {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    const size_t least = static_cast<size_t>(std::max(sysconf(_SC_THREAD_STACK_MIN), 0l));
    pthread_attr_setstacksize(&attributes, std::max(kStackBytes, least));
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t thread;
    const int error = pthread_create(&thread, &attributes, run, argument);
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    pthread_attr_destroy(&attributes);
    if (error) fail("starting a thread for lifelines", error);
    pthread_setname_np(thread, name);
    return thread;
}

futex_waitv as_wait(Shared<uint32_t>& word, uint32_t value) {
    return {value, reinterpret_cast<uint64_t>(&word), FUTEX_32, 0};
}

// Until one of the words has another value, or for no reason. Before Linux 5.16, and where a sandbox does not
// know the call, the last one is slept on for a moment.
void wait_for_any(const futex_waitv* waits, size_t count, int64_t timeout_ns) {
    const int64_t until = monotonic_ns() + timeout_ns;
    const timespec deadline{until / 1'000'000'000, until % 1'000'000'000};
    if (has_waitv && syscall(SYS_futex_waitv, waits, count, 0, &deadline, CLOCK_MONOTONIC) < 0 &&
        (errno == ENOSYS || errno == EPERM))
        has_waitv = false;
    if (has_waitv) return;
    auto& word = *reinterpret_cast<Shared<uint32_t>*>(waits[count - 1].uaddr);
    sleep_on(word, static_cast<uint32_t>(waits[count - 1].val), std::min(timeout_ns, kFallbackLook_ns));
}

}  // namespace

// --- one's own lifeline ------------------------------------------------------------------------------------

LifelineKeeper::LifelineKeeper(Table table, uint32_t id)
    : slot_(table.slot(id)), lookout_(table, id), owner_(getpid()) {
    thread_ = start_thread("bequest-life", run, this);
    while (phase_.load() != kRuns) sleep_on(phase_, 0, kNudge_ns);
}

void* LifelineKeeper::run(void* self) {
    auto& keeper = *static_cast<LifelineKeeper*>(self);
    ask_for_short_slices();
    keeper.hold_line();
    keeper.phase_.store(kRuns);
    wake(keeper.phase_, INT_MAX);
    while (keeper.leaving_.load() == 0) keeper.beat();
    keeper.drop_line();
    keeper.phase_.store(kEnded);
    wake(keeper.phase_, INT_MAX);
    return nullptr;
}

// In this order: a word that names a thread is in that thread's list.
void LifelineKeeper::hold_line() {
    auto* const head = reinterpret_cast<Node*>(&list_);
    list_ = {&node_, reinterpret_cast<char*>(&slot_.lifeline) - reinterpret_cast<char*>(&node_), nullptr};
    node_.next = head;
    syscall(SYS_set_robust_list, &list_, sizeof list_);
    held_ = static_cast<uint32_t>(gettid()) | FUTEX_WAITERS;
    slot_.lifeline.store(held_);
    wake(slot_.lifeline, INT_MAX);
}

// And the other way round; a word that is somebody else's by now stays as it is.
void LifelineKeeper::drop_line() {
    uint32_t expected = held_;
    if (slot_.lifeline.compare_exchange_strong(expected, 0)) wake(slot_.lifeline, INT_MAX);
    list_.first = reinterpret_cast<Node*>(&list_);
}

void LifelineKeeper::beat() {
    const uint32_t watched = slot_.watched.load();
    if (watched != 0) slot_.beats.store(next_beat());
    lookout_.look();
    const futex_waitv waits[] = {as_wait(slot_.revocations, lookout_.seen()),
                                 as_wait(slot_.watched, watched)};
    const int64_t rest = watched != 0 ? kBeatInterval_ns : kLookInterval_ns;
    wait_for_any(waits, std::size(waits), lookout_.rest_ns(rest));
}

uint32_t LifelineKeeper::next_beat() const {
    const uint32_t beats = slot_.beats.load();
    const int64_t expected_by = expected_by_.load();
    if (expected_by != 0 && monotonic_ns() > expected_by) return beats | kStuck;
    return (beats + 1) & ~kStuck;
}

void LifelineKeeper::leave() {
    if (owner_ != getpid()) return;
    owner_ = 0;
    leaving_.store(1);
    while (phase_.load() != kEnded) {  // it may be about to sleep, having missed a nudge
        wake(slot_.watched, INT_MAX);
        sleep_on(phase_, kRuns, kNudge_ns);
    }
    pthread_join(thread_, nullptr);
}

void set_watchers(Slot& slot, uint32_t watchers) {
    slot.watched.store(watchers);
    wake(slot.watched, INT_MAX);
}

// --- watching another's ------------------------------------------------------------------------------------

bool is_broken(const Slot& slot) { return slot.lifeline.load() & FUTEX_OWNER_DIED; }

void Vigil::keep(Slot& slot, uint32_t id, uint64_t incarnation) {
    {
        const std::lock_guard guard(lock_);
        slot_ = &slot;
        end_ = {id, incarnation, LineEvent::kDied};
        has_begun_ = false;
    }
    nudge();
}

void Vigil::nudge() {
    news_.fetch_add(1);
    wake(news_, INT_MAX);
}

std::optional<Vigil::End> Vigil::wait() {
    while (true) {
        const uint32_t news = news_.load();
        if (news != heard_) {
            heard_ = news;
            return {};
        }
        futex_waitv waits[2] = {as_wait(news_, news)};
        size_t count = 1;
        {
            const std::lock_guard guard(lock_);
            if (auto end = look(waits, count)) return end;
        }
        wait_for_any(waits, count, count > 1 ? kVigilLook_ns : kForEver_ns);
    }
}

// Whether the line has ended; else what is to be waited for.
std::optional<Vigil::End> Vigil::look(futex_waitv* waits, size_t& count) {
    if (!slot_) return {};
    Shared<uint32_t>& line = slot_->lifeline;
    const uint32_t value = line.load();
    if (slot_->life.load() >> 2 != end_.incarnation) {  // looked at last: the word is no later bearer's
        slot_ = nullptr;
        return {};
    }
    const bool has_died = value & FUTEX_OWNER_DIED;
    if (!has_died && !(value == 0 && has_begun_)) {
        has_begun_ = value != 0;
        waits[count++] = as_wait(line, value);
        return {};
    }
    if (has_died) wake(line, INT_MAX);  // the kernel has woken one of all who wait
    slot_ = nullptr;
    end_.event = has_died ? LineEvent::kDied : LineEvent::kLeft;
    return end_;
}

}  // namespace bequest
