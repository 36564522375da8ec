// Who in this operating-system process is attached to a rack.
#pragma once

#include <unistd.h>

#include "python.hpp"

namespace bequest {

// One window per operating-system process, and one rack in it. Handles that outlive their attachment keep
// the window, but not the rack from changing.
class Seats final : public Tenants {
public:
    std::shared_ptr<AddressSpace> space(const std::string& rack) {
        auto space = owner_ == getpid() ? space_.lock() : nullptr;
        if (space && rack_ != rack) {
            if (is_anyone_attached())
                raise_error(
                    "NotAttached",
                    "this process is attached to the rack %s already; detach from it first (one rack at "
                    "a time: both would use the same addresses)",
                    rack_.c_str());
            space->forget_everything();
            space = nullptr;
        }
        if (!space) {
            space = std::make_shared<AddressSpace>(this);
            space_ = space;
            rack_ = rack;
            owner_ = getpid();
            members_.clear();
        }
        return space;
    }
    void add(const std::shared_ptr<Member>& member) {
        std::erase_if(members_, [](const std::weak_ptr<Member>& gone) { return gone.expired(); });
        members_.push_back(member);
    }

    // The last to leave drops the window whole; before that, what was its own is closed.
    void leave(Member& member) {
        if (!is_anyone_attached()) {
            member.attachment.space().forget_everything();
            space_.reset();
            return;
        }
        std::vector<Extent> extents = member.attachment.arena().runs();
        for (Holding* holding : member.holdings) {
            if (holding->is_reading())
                member.attachment.space().end_reading(holding->address());
            else
                for (const PlacedExtent& piece : holding->pieces()) extents.push_back(piece.extent);
        }
        member.attachment.close_pages(extents);
    }

    void hear_of(const ScratchRange& bad) override {
        for_each([&](const std::shared_ptr<Member>& member) {
            member->account_for(bad.start, bad.end, bad.kind);
        });
    }
    size_t views_of(uint64_t start, uint64_t end) const override {
        size_t views = 0;
        for_each([&](const std::shared_ptr<Member>& member) { views += member->views_of(start, end); });
        return views;
    }

    // Without allocating anything: the fault handler asks.
    template <class Act>
    void for_each(const Act& act) const {
        if (owner_ != getpid()) return;
        for (const auto& reference : members_)
            if (const auto member = reference.lock(); member && member->usable) act(member);
    }

private:
    bool is_anyone_attached() const {
        for (const auto& reference : members_) {
            const auto member = reference.lock();
            if (member && member->usable) return true;
        }
        return false;
    }

    std::weak_ptr<AddressSpace> space_;
    std::string rack_;
    pid_t owner_ = 0;
    std::vector<std::weak_ptr<Member>> members_;
};

Seats& seats();

}  // namespace bequest
