#include "doorbell.hpp"

#include <cerrno>
#include <climits>
#include <ctime>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace bequest {

#ifdef BEQUEST_STEP_HOOK
bool (*sleep_hook)(Shared<uint32_t>& word, uint32_t seen) = nullptr;
void (*wake_hook)(Shared<uint32_t>& word, uint32_t sleepers) = nullptr;
#endif

void ring_doorbell(Slot& slot, uint32_t messages) {
    if (slot.sleepers.load() == 0) return;
    slot.doorbell.fetch_add(1);
    wake(slot.doorbell, messages);
}

void ring_space_bell(Slot& slot) {
    if (slot.space_waiters.load() == 0) return;
    slot.space_bell.fetch_add(1);
    wake(slot.space_bell, INT_MAX);
}

bool sleep_on(Shared<uint32_t>& word, uint32_t seen, int64_t timeout_ns) {
#ifdef BEQUEST_STEP_HOOK
    if (sleep_hook) return sleep_hook(word, seen);
#endif
    const timespec timeout{timeout_ns / 1'000'000'000, timeout_ns % 1'000'000'000};
    const long rc = syscall(SYS_futex, &word, FUTEX_WAIT, seen, &timeout, nullptr, 0);
    return rc == 0 || errno != EINTR;
}

void wake(Shared<uint32_t>& word, uint32_t sleepers) {
#ifdef BEQUEST_STEP_HOOK
    if (wake_hook) return wake_hook(word, sleepers);
#endif
    syscall(SYS_futex, &word, FUTEX_WAKE, sleepers, nullptr, nullptr, 0);
}

int64_t monotonic_ns() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1'000'000'000ll + now.tv_nsec;
}

}  // namespace bequest
