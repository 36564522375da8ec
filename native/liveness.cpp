#include "liveness.hpp"

#include <linux/futex.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <csignal>

#include "doorbell.hpp"
#include "kernel.hpp"

namespace bequest {

namespace {

constexpr size_t kStackBytes = 64 << 10;
constexpr uint32_t kRuns = 1, kEnded = 2;  // phases of a keeper's thread
constexpr int64_t kForEver_ns = INT64_MAX / 2, kNudge_ns = 1'000'000, kFallbackLook_ns = 20'000'000;
constexpr size_t kWaitsMax = FUTEX_WAITV_MAX;  // 128, one of them for news of the squad itself
std::atomic<bool> has_waitv{true};             // Linux 5.16

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
    static_assert(sizeof(Node) == sizeof(Lifeline), "one futex_offset serves all words");
    thread_ = start_thread("bequest-life", run, this);
    while (phase_.load() != kRuns) sleep_on(phase_, 0, kNudge_ns);
}

void* LifelineKeeper::run(void* self) {
    auto& keeper = *static_cast<LifelineKeeper*>(self);
    keeper.hold_lines();
    keeper.phase_.store(kRuns);
    wake(keeper.phase_, INT_MAX);
    while (keeper.leaving_.load() == 0) keeper.beat();
    keeper.drop_lines();
    keeper.phase_.store(kEnded);
    wake(keeper.phase_, INT_MAX);
    return nullptr;
}

// In this order: a word that names a thread is in that thread's list.
void LifelineKeeper::hold_lines() {
    auto* const head = reinterpret_cast<Node*>(&list_);
    list_ = {nodes_, reinterpret_cast<char*>(&slot_.lifelines[0].word) - reinterpret_cast<char*>(&nodes_[0]),
             nullptr};
    for (uint32_t i = 0; i < kLifelineCount; i++)
        nodes_[i].next = i + 1 < kLifelineCount ? &nodes_[i + 1] : head;
    syscall(SYS_set_robust_list, &list_, sizeof list_);
    held_ = static_cast<uint32_t>(gettid()) | FUTEX_WAITERS;
    for (Lifeline& line : slot_.lifelines) {
        line.word.store(held_);
        wake(line.word, INT_MAX);
    }
}

// And the other way round; a word that is somebody else's by now stays as it is.
void LifelineKeeper::drop_lines() {
    for (Lifeline& line : slot_.lifelines) {
        uint32_t expected = held_;
        if (line.word.compare_exchange_strong(expected, 0)) wake(line.word, INT_MAX);
    }
    list_.first = reinterpret_cast<Node*>(&list_);
}

void LifelineKeeper::beat() {
    const uint32_t watched = slot_.watched.load();
    if (watched != 0) slot_.beats.store(next_beat());
    lookout_.look();
    const futex_waitv waits[] = {as_wait(slot_.revocations, lookout_.seen()),
                                 as_wait(slot_.watched, watched)};
    wait_for_any(waits, std::size(waits), watched != 0 ? kBeatInterval_ns : kLookInterval_ns);
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

// --- watching others' --------------------------------------------------------------------------------------

// Some lines and the thread that waits on them. All but `wait` happens under the watch's lock.
class DeathWatch::Squad {
public:
    explicit Squad(DeathWatch& watch) : watch_(watch), thread_(start_thread("bequest-watch", run, this)) {}
    // Without the lock.
    void end() {
        leaving_.store(1);
        tell_news();
        pthread_join(thread_, nullptr);
    }
    bool has_room() const { return lines_.size() + 1 < (has_waitv ? kWaitsMax : 2); }
    void add(uint64_t key, Shared<uint32_t>& word) {
        lines_.push_back({key, &word, word.load() != 0});
        tell_news();
    }
    bool remove(uint64_t key) {
        const size_t removed = std::erase_if(lines_, [&](const Line& line) { return line.key == key; });
        if (removed) tell_news();
        return removed != 0;
    }

private:
    struct Line {
        uint64_t key;
        Shared<uint32_t>* word;
        bool begun;
    };

    static void* run(void* self) {
        auto& squad = *static_cast<Squad*>(self);
        std::vector<futex_waitv> waits;
        while (squad.leaving_.load() == 0) {
            {
                const std::lock_guard guard(squad.watch_.lock_);
                squad.look(waits);
            }
            wait_for_any(waits.data(), waits.size(), kForEver_ns);
        }
        return nullptr;
    }

    void tell_news() {
        news_.fetch_add(1);
        wake(news_, INT_MAX);
    }

    // Reports what has ended, and gathers what is to be waited for.
    void look(std::vector<futex_waitv>& waits) {
        waits.clear();
        waits.push_back(as_wait(news_, news_.load()));
        std::erase_if(lines_, [&](Line& line) {
            const uint32_t value = line.word->load();
            const bool has_ended = value & FUTEX_OWNER_DIED || (value == 0 && line.begun);
            if (has_ended) {
                report(line.key, value ? LineEvent::kDied : LineEvent::kLeft);
                wake(*line.word, INT_MAX);  // the kernel has woken one of all who wait
                return true;
            }
            line.begun = value != 0;
            waits.push_back(as_wait(*line.word, value));
            return false;
        });
    }

    void report(uint64_t key, LineEvent event) {
        watch_.told_.emplace_back(key, event);
        const uint64_t one = 1;
        [[maybe_unused]] const ssize_t written = write(watch_.eventfd_, &one, sizeof one);
    }

    DeathWatch& watch_;
    std::vector<Line> lines_;
    Shared<uint32_t> news_{0};
    Shared<uint32_t> leaving_{0};
    pthread_t thread_;  // last: it uses all of the above
};

DeathWatch::DeathWatch(LifelineUse use)
    : use_(use), eventfd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)), owner_(getpid()) {
    if (eventfd_ < 0) fail("opening an eventfd for hints of deaths", errno);
}

DeathWatch::~DeathWatch() {
    for (auto& squad : squads_) {
        if (owner_ == getpid())
            squad->end();
        else
            squad.release();  // the threads are the parent's
    }
    ::close(eventfd_);
}

void DeathWatch::add(uint64_t key, Slot& slot) {
    const std::lock_guard guard(lock_);
    auto squad = std::find_if(squads_.begin(), squads_.end(), [](const auto& s) { return s->has_room(); });
    if (squad == squads_.end()) squad = squads_.insert(squads_.end(), std::make_unique<Squad>(*this));
    (*squad)->add(key, slot.lifelines[use_].word);
}

void DeathWatch::remove(uint64_t key) {
    const std::lock_guard guard(lock_);
    for (auto& squad : squads_)
        if (squad->remove(key)) return;
}

std::vector<std::pair<uint64_t, LineEvent>> DeathWatch::drain() {
    const std::lock_guard guard(lock_);
    uint64_t count;
    [[maybe_unused]] const ssize_t got = read(eventfd_, &count, sizeof count);
    std::vector<std::pair<uint64_t, LineEvent>> told(told_.begin(), told_.end());
    told_.clear();
    return told;
}

}  // namespace bequest
