#include "arena.hpp"

#include <algorithm>

namespace bequest {

bool Arena::is_huge(const Extent& run) const {
    return table_.slab_record(table_.extent(run.descriptor).slab).huge != 0;
}

bool Arena::suits(const Extent& run, const RunRequest& request) const {
    const Descriptor& d = table_.extent(run.descriptor);
    const SlabRecord& slab = table_.slab_record(d.slab);
    return run.word.pages() >= request.lead(d.address) + request.pages &&
           (request.element == kAnyElement || slab.element == request.element) &&
           slab.has_failed.load() == 0 && !is_taken_(d.address, d.address + run.word.pages() * kPageBytes);
}

void Arena::put(const Extent& run) {
    const bool huge = is_huge(run);
    bins_[huge][run.word.pages()].push_back(run);
    free_pages_[huge] += run.word.pages();
    unmerged_[huge] = true;
}

std::optional<Extent> Arena::pick_from(Bins& bins, const RunRequest& request) {
    for (auto bin = bins.lower_bound(request.pages); bin != bins.end();) {
        std::vector<Extent>& runs = bin->second;
        for (size_t i = runs.size(); i-- > 0;) {
            const Extent run = runs[i];
            const bool stale = !(table_.owner(run.descriptor) == run.word);
            if (!stale && !suits(run, request)) continue;
            runs.erase(runs.begin() + static_cast<std::ptrdiff_t>(i));
            free_pages_[request.huge] -= run.word.pages();
            if (!stale) return run;
        }
        // An empty bin of the size asked for is kept: it will be filled again.
        bin = runs.empty() && bin->first != request.pages ? bins.erase(bin) : std::next(bin);
    }
    return std::nullopt;
}

std::optional<Extent> Arena::pick(const RunRequest& request) {
    Bins& bins = bins_[request.huge];
    if (table_.slot(id_).rescan.load() != 0) rescan();
    if (table_.slot(id_).returns.load() != 0) absorb_returns();
    if (auto run = pick_from(bins, request)) return run;
    if (free_pages_[request.huge] < request.pages || !coalesce(request.huge)) return std::nullopt;
    return pick_from(bins, request);
}

void Arena::absorb_returns() {
    for (uint32_t descriptor : table_.drain_returns(id_)) {
        const OwnerWord word = table_.owner(descriptor);
        if (word.is(State::kFree, id_)) put({descriptor, word});
    }
}

// Somebody died who may have been sending us an extent: freed it, but not told us. Rebuilds the
// index from the table.
void Arena::rescan() {
    table_.slot(id_).rescan.store(0);
    table_.drain_returns(id_);
    for (Bins& bins : bins_) bins.clear();
    free_pages_[0] = free_pages_[1] = 0;
    for (uint32_t i = 0; i < table_.extent_limit(); i++) {
        Descriptor& d = table_.extent(i);
        if (home_of(d.address) != id_) continue;
        uint32_t pusher = d.linked.load();
        if (pusher != 0 && table_.life((pusher - 1) % kIdCount) != Life::kLive && pusher - 1 != kMmuId) {
            d.linked.compare_exchange_strong(pusher, 0);  // linked by the dead, on no list
        }
        // Looked at last: who frees it while it is linked leaves it to us.
        const OwnerWord word = table_.owner(i);
        if (word.is(State::kFree, id_)) put({i, word});
    }
}

std::vector<Extent> Arena::runs() const {
    std::vector<Extent> runs;
    for (const Bins& bins : bins_)
        for (const auto& [pages, bin] : bins) runs.insert(runs.end(), bin.begin(), bin.end());
    return runs;
}

bool Arena::coalesce(bool huge) {
    if (!unmerged_[huge]) return false;
    const auto is_stale = [this](const Extent& run) { return !(table_.owner(run.descriptor) == run.word); };
    std::vector<PlacedExtent> runs;
    for (auto& [pages, bin] : bins_[huge])
        for (const Extent& run : bin)
            if (!is_stale(run))
                runs.push_back(table_.placed(run));  // a stale one may lie between two neighbours
    bins_[huge].clear();
    free_pages_[huge] = 0;
    std::sort(runs.begin(), runs.end());
    bool merged = false;
    for (size_t i = 0; i < runs.size();) {
        Extent run = runs[i++].extent;
        if (is_stale(run)) continue;
        for (; i < runs.size() && !is_stale(runs[i].extent); i++) {
            Extent& next = runs[i].extent;
            if (!table_.adjacent(run, next) || !table_.merge(id_, run, next)) break;
            pool_.give_back(next.descriptor);
            merged = true;
        }
        put(run);
    }
    unmerged_[huge] = false;
    return merged;
}

}  // namespace bequest
