// A vigil over a line whose end nobody wakes it for, and over one that is another bearer's by now.
#include "liveness.hpp"

#include <chrono>
#include <thread>

#include "scenario.hpp"

namespace bequest::tests {

namespace {

constexpr uint32_t kId = 3;
constexpr uint64_t kIncarnation = 7;
constexpr uint32_t kSomeThread = 4711;

void be_borne(Slot& slot, uint64_t incarnation) {
    slot.life.store(incarnation << 2 | static_cast<uint64_t>(Life::kLive));
    slot.lifeline.store(kSomeThread);
}

// What the vigil says by the time that it is nudged, if `act` is done meanwhile.
template <class Act>
std::optional<Vigil::End> end_after(Vigil& vigil, std::chrono::milliseconds patience, const Act& act) {
    vigil.wait();  // until it has heard of what it is to be kept over
    std::atomic<bool> is_told{false};
    std::thread others([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
        act();
        for (int i = 0; i < 100 && !is_told; i++) std::this_thread::sleep_for(patience / 100);
        vigil.nudge();
    });
    const auto end = vigil.wait();
    is_told = true;
    others.join();
    return end;
}

std::string a_wake_up_that_went_elsewhere_is_made_up_for() {
    Slot slot{};
    be_borne(slot, kIncarnation);
    Vigil vigil;
    vigil.keep(slot, kId, kIncarnation);
    const auto end = end_after(vigil, std::chrono::seconds(5),
                               [&] { slot.lifeline.store(kSomeThread | FUTEX_OWNER_DIED); });
    if (!end) return "it waits for ever";
    return end->id == kId && end->event == LineEvent::kDied ? "" : "it was told something else";
}

std::string of_a_later_bearer_nothing_is_told() {
    Slot slot{};
    be_borne(slot, kIncarnation);
    Vigil vigil;
    vigil.keep(slot, kId, kIncarnation);
    const auto end = end_after(vigil, std::chrono::milliseconds(200), [&] {
        be_borne(slot, kIncarnation + 1);
        slot.lifeline.store(kSomeThread | FUTEX_OWNER_DIED);
    });
    return end ? "the death of one was told as another's" : "";
}

}  // namespace

std::vector<Test> liveness_tests() {
    return {
        {"vigil: a wake-up that went elsewhere", a_wake_up_that_went_elsewhere_is_made_up_for},
        {"vigil: of a later bearer nothing is told", of_a_later_bearer_nothing_is_told},
    };
}

}  // namespace bequest::tests
