// The free runs of one process: its own index over what the table says is FREE in its name.
//
// The table is the truth and this is a cache of it: every run is an Extent whose word is compared
// when it is used, so a run that the Rack MMU reclaimed meanwhile is simply dropped, and after a
// crash nothing of this needs saving. Freed runs go back whole into the bin of their size, so that a
// steady alloc/free of one size never splits or merges; neighbours are merged only when nothing fits.
#pragma once

#include <functional>
#include <map>
#include <utility>
#include <vector>

#include "v2p_table.hpp"

namespace bequest {

constexpr uint32_t kAnyElement = UINT32_MAX;

struct RunRequest {
    uint64_t pages;
    bool huge;  // from a slab of 2 MiB pages
    uint32_t element = kAnyElement;
    bool aligned = false;  // begins with one of them

    // Pages at the beginning of a run at this address that are to be left out.
    uint64_t lead(uint64_t address) const {
        return aligned ? (kHugePageBytes - address % kHugePageBytes) % kHugePageBytes / kPageBytes : 0;
    }
};

class Arena {
public:
    using IsTaken =
        std::function<bool(uint64_t start, uint64_t end)>;  // views of what was there before live on
    Arena(Table table, uint32_t id, DescriptorPool& pool, IsTaken is_taken)
        : table_(table), id_(id), pool_(pool), is_taken_(std::move(is_taken)) {}

    // A free run of at least that many pages, not counting its lead, removed from the index.
    std::optional<Extent> pick(const RunRequest& request);
    void put(const Extent& run);
    std::vector<Extent> runs() const;
    uint64_t free_pages() const { return free_pages_[0] + free_pages_[1]; }

private:
    using Bins = std::map<uint64_t, std::vector<Extent>>;  // by pages
    bool is_huge(const Extent& run) const;
    bool suits(const Extent& run, const RunRequest& request) const;
    std::optional<Extent> pick_from(Bins& bins, const RunRequest& request);
    void absorb_returns();
    void rescan();
    bool coalesce(bool huge);

    Table table_;
    uint32_t id_;
    DescriptorPool& pool_;
    IsTaken is_taken_;
    Bins bins_[2];  // small pages, huge pages
    uint64_t free_pages_[2] = {0, 0};
    bool unmerged_[2] = {false, false};  // something was freed since the last coalesce
};

}  // namespace bequest
