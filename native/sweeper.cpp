#include "sweeper.hpp"

#include <sched.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cassert>
#include <cerrno>
#include <thread>

#include "kernel.hpp"

namespace bequest {

namespace {

void ring(int bell) {
    const uint64_t one = 1;
    while (write(bell, &one, sizeof one) < 0 && errno == EINTR) {
    }
}

void await(int bell) {
    uint64_t count;
    while (read(bell, &count, sizeof count) < 0 && errno == EINTR) {
    }
}

}  // namespace

enum class Turn { kEmpty, kOrdered, kDone, kEnd };

struct Sweeper::Desk {
    int order = eventfd(0, EFD_CLOEXEC), done = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    std::atomic<Turn> turn{Turn::kEmpty};
    std::shared_ptr<SealLedger> ledger;
    uint64_t first = 0, end = 0, pages_max = 0;
    bool only_unsummed = false;
    Swept swept;
    ~Desk() {
        ::close(order);
        ::close(done);
    }
};

void Sweeper::work(const std::shared_ptr<Desk>& desk) {
    const sched_param parameters{};
    sched_setscheduler(0, SCHED_IDLE, &parameters);  // of this thread; without it, it is merely less polite
    for (;;) {
        await(desk->order);
        if (desk->turn.load() == Turn::kEnd) return;
        desk->swept = desk->ledger->sweep(desk->first, desk->end, desk->pages_max, desk->only_unsummed);
        Turn ordered = Turn::kOrdered;
        if (!desk->turn.compare_exchange_strong(ordered, Turn::kDone)) return;
        ring(desk->done);
    }
}

// Signals are for the daemon's own thread.
Sweeper::Sweeper() : desk_(std::make_shared<Desk>()) {
    if (desk_->order < 0 || desk_->done < 0) fail("making the sweeper's bells", errno);
    sigset_t all, before;
    sigfillset(&all);
    sigdelset(&all, SIGBUS);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    std::thread([desk = desk_] { work(desk); }).detach();
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

Sweeper::~Sweeper() {
    if (desk_->ledger) desk_->ledger->stop();
    desk_->turn.store(Turn::kEnd);
    ring(desk_->order);
}

int Sweeper::fileno() const { return desk_->done; }

void Sweeper::start(std::shared_ptr<SealLedger> ledger, uint64_t first, uint64_t end, uint64_t pages_max,
                    bool only_unsummed) {
    assert(desk_->turn.load() == Turn::kEmpty);
    desk_->ledger = std::move(ledger);
    desk_->first = first, desk_->end = end, desk_->pages_max = pages_max;
    desk_->only_unsummed = only_unsummed;
    desk_->turn.store(Turn::kOrdered);
    ring(desk_->order);
}

std::optional<Swept> Sweeper::collect() {
    uint64_t count;
    while (read(desk_->done, &count, sizeof count) < 0 && errno == EINTR) {
    }
    if (desk_->turn.load() != Turn::kDone) return std::nullopt;
    Swept swept = std::move(desk_->swept);
    desk_->ledger.reset();
    desk_->turn.store(Turn::kEmpty);
    return swept;
}

}  // namespace bequest
