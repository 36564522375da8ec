#include "herald.hpp"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>

#include "../doorbell.hpp"

namespace bequest {

namespace {

constexpr int64_t kPatienceNs = 100'000'000;
constexpr size_t kHeraldStackBytes = 256 << 10;

enum State : uint32_t { kFree, kFilling, kWaiting, kAbandoned, kRunning, kDone };
struct Request {
    Shared<uint32_t> state{kFree};
    Errand errand;
    RunErrand run;
};
Request requests[32];
Shared<uint32_t> bell{0};
std::atomic<pid_t> herald_of{
    0};  // the process in which it runs: a forked child has none. -pid: it is started

bool move(Request& request, uint32_t from, uint32_t to) {
    return request.state.compare_exchange_strong(from, to);
}

void serve(Request& request) {
    if (request.state.load() != kWaiting && request.state.load() != kAbandoned) return;
    const PyGILState_STATE gil = PyGILState_Ensure();
    const bool waits = move(request, kWaiting, kRunning);
    request.run(request.errand, waits);
    PyGILState_Release(gil);
    request.state.store(waits ? kDone : kFree);
    wake(request.state, 1);
}

void* herald(void*) {
    for (;;) {
        const uint32_t seen = bell.load();
        for (Request& request : requests) serve(request);
        sleep_on(bell, seen, INT64_MAX / 2);
    }
    return nullptr;
}

// In the child of a fork: what other threads of the parent had asked for is nobody's business here.
void forget_errands() {
    for (Request& request : requests) request.state.store(kFree);
}

// Another thread may be at it: then its herald serves us too, and if it fails, nobody comes.
bool start() {
    const pid_t here = getpid();
    pid_t before = herald_of.load();
    if (before == here || before == -here) return true;
    if (!herald_of.compare_exchange_strong(before, -here)) return true;
    sigset_t all, old;
    sigfillset(&all);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, kHeraldStackBytes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    pthread_t thread;
    const bool started = pthread_create(&thread, &attributes, herald, nullptr) == 0;
    pthread_sigmask(SIG_SETMASK, &old, nullptr);
    pthread_attr_destroy(&attributes);
    herald_of.store(started ? here : 0);
    return started;
}

bool has_herald() { return herald_of.load() == getpid(); }

// False if nobody will ever do it.
bool wait_for(Request& request) {
    const int64_t deadline = monotonic_ns() + kPatienceNs;
    for (;;) {
        const uint32_t state = request.state.load();
        if (state == kDone) request.state.store(kFree);
        if (state == kDone || state == kFree) return true;
        const int64_t left = deadline - monotonic_ns();
        if (state == kWaiting && left <= 0) {
            if (!has_herald() && move(request, kWaiting, kFree)) return false;
            if (move(request, kWaiting, kAbandoned)) return true;
        }
        if (state == kWaiting || state == kRunning)
            sleep_on(request.state, state, left > 0 ? left : kPatienceNs);
    }
}

}  // namespace

void prepare_herald() {
    static const int at_fork = pthread_atfork(nullptr, nullptr, forget_errands);
    (void)at_fork;
}

bool send_herald(const Errand& errand, RunErrand run) {
    if (!start()) return false;
    for (Request& request : requests) {
        if (!move(request, kFree, kFilling)) continue;
        request.errand = errand;
        request.run = run;
        request.state.store(kWaiting);
        bell.fetch_add(1);
        wake(bell, 1);
        return wait_for(request);
    }
    return false;
}

}  // namespace bequest
