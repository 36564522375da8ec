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
std::atomic<pid_t> herald_of{0};  // the process in which it runs: a forked child has none

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

bool start() {
    const pid_t here = getpid();
    pid_t before = herald_of.load();
    if (before == here) return true;
    if (!herald_of.compare_exchange_strong(before, here)) return true;  // another thread is at it
    for (Request& request : requests) request.state.store(kFree);
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
    if (!started) herald_of.store(0);
    return started;
}

void wait_for(Request& request) {
    const int64_t deadline = monotonic_ns() + kPatienceNs;
    for (;;) {
        const uint32_t state = request.state.load();
        if (state == kDone) return request.state.store(kFree);
        const int64_t left = deadline - monotonic_ns();
        if (state == kWaiting && left <= 0 && move(request, kWaiting, kAbandoned)) return;
        if (state == kWaiting || state == kRunning)
            sleep_on(request.state, state, left > 0 ? left : kPatienceNs);
    }
}

}  // namespace

bool send_herald(const Errand& errand, RunErrand run) {
    if (!start()) return false;
    for (Request& request : requests) {
        if (!move(request, kFree, kFilling)) continue;
        request.errand = errand;
        request.run = run;
        request.state.store(kWaiting);
        bell.fetch_add(1);
        wake(bell, 1);
        wait_for(request);
        return true;
    }
    return false;
}

}  // namespace bequest
