// Waking who waits for an inbox, and sleeping until one is rung: futexes in shared memory.
//
// The sleeper counts itself in, reads the bell, looks at the inbox once more, and only then sleeps on
// the value it read; whoever publishes rings first and then looks for sleepers. A sleeper that dies
// leaves the count too high, which costs its successors a needless wake-up and nothing else.
#pragma once

#include <cstdint>

#include "layout.hpp"

namespace bequest {

void ring_doorbell(Slot& slot, uint32_t messages);
void ring_space_bell(Slot& slot);

// Sleeps until *word differs from `seen`, at most `timeout_ns`. False if a signal interrupted it.
bool sleep_on(Shared<uint32_t>& word, uint32_t seen, int64_t timeout_ns);
void wake(Shared<uint32_t>& word, uint32_t sleepers);

// Waits until `ready` says so, spinning for `spin_ns` before it sleeps. Returns early, with false, when a
// signal came, after a slice of kSleepSliceNs (a wake-up may have gone to one who died of it), or when
// `timeout_ns` is over; the caller looks which, and calls again.
constexpr int64_t kSleepSliceNs = 100'000'000;
template <class Ready>
bool wait_until(const Ready& ready, Shared<uint32_t>& bell, Shared<uint32_t>& sleepers, int64_t spin_ns,
                int64_t timeout_ns);

#ifdef BEQUEST_STEP_HOOK  // a test that decides who runs also decides who sleeps
extern bool (*sleep_hook)(Shared<uint32_t>& word, uint32_t seen);
extern void (*wake_hook)(Shared<uint32_t>& word, uint32_t sleepers);
constexpr int kLooksBetweenClocks = 1;
#else
constexpr int kLooksBetweenClocks = 64;
#endif

int64_t monotonic_ns();
inline void spin_pause() { __builtin_ia32_pause(); }

template <class Ready>
bool wait_until(const Ready& ready, Shared<uint32_t>& bell, Shared<uint32_t>& sleepers, int64_t spin_ns,
                int64_t timeout_ns) {
    const int64_t start = monotonic_ns();
    const int64_t spin = spin_ns < timeout_ns ? spin_ns : timeout_ns;
    do {
        for (int i = 0; i < kLooksBetweenClocks; i++) {
            if (ready()) return true;
            // Each look takes the cell's cache line away from whoever is filling it.
            for (int pauses = 0; pauses < 4; pauses++) spin_pause();
        }
    } while (monotonic_ns() - start < (spin < kSleepSliceNs ? spin : kSleepSliceNs));
    if (spin >= kSleepSliceNs) return false;

    sleepers.fetch_add(1);
    const uint32_t seen = bell.load();
    bool came = ready();
    const int64_t left = timeout_ns - (monotonic_ns() - start);
    if (!came && left > 0) {
        sleep_on(bell, seen, left < kSleepSliceNs ? left : kSleepSliceNs);
        came = ready();
    }
    sleepers.fetch_sub(1);
    return came;
}

}  // namespace bequest
