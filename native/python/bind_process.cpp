// bequest._core.ProcessBase: one attached process's end of the data plane.
//
// Calls that may wait release the GIL while they do; every other call holds it, and that is the lock
// of everything below.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>

#include "../doorbell.hpp"
#include "seats.hpp"

namespace bequest {

namespace {

void init(ProcessBase* self, const nb::object& table, uint32_t id, const std::string& rack,
          const nb::object& open_slab, const nb::object& region_type, double spin) {
    if (id == 0 || id > kMaxProcessId) raise_error("ValueError", "%u is no process id", id);
    auto* file = nb::cast<TableFile*>(table);
    auto attached = std::make_shared<std::weak_ptr<Member>>();
    auto open = [open_slab, attached](uint32_t slab) {
        auto [fd, failed] =
            nb::cast<std::pair<int, std::vector<std::pair<uint64_t, uint64_t>>>>(open_slab(slab));
        if (const auto member = attached->lock(); !member || !member->usable) {
            ::close(fd);  // in a window that has been given back nothing must be mapped
            raise_error("NotAttached", "this process has detached meanwhile");
        }
        return OpenedSlab{fd, std::move(failed)};
    };
    auto member = std::make_shared<Member>(file->table(), id, seats().space(rack), std::move(open));
    *attached = member;
    seats().add(member);
    catch_faults();
    new (self) ProcessBase{table, region_type, std::move(member), static_cast<int64_t>(spin * 1e9)};
}

// It has all become ours just now. If something was stolen from us since we last looked, it may have been
// these very pages, which have come back by now; we may have been stopped meanwhile. Then a fence lies on
// their mappings still, and nobody but us knows that they are ours again.
void map_anew_if_robbed(Member& member, const std::vector<std::shared_ptr<Holding>>& holdings) {
    if (!member.was_robbed()) return;
    take_stock();
    std::vector<Extent> extents;
    for (const auto& holding : holdings)
        for (const PlacedExtent& piece : holding->pieces()) extents.push_back(piece.extent);
    member.attachment.map_anew(extents);
}

nb::object alloc(nb::handle_t<ProcessBase> self, uint64_t nbytes, bool huge, uint32_t element, bool stealable,
                 bool packed) {
    ProcessBase& process = *nb::inst_ptr<ProcessBase>(self);
    Member& member = process.usable();
    const bool aligned = huge && !packed;
    const uint64_t unit = aligned ? kHugePageBytes : kPageBytes;
    const uint64_t pages = (nbytes + unit - 1) / unit * (unit / kPageBytes);
    const auto extent =
        member.attachment.alloc({pages, huge, element, aligned}, nbytes, stealable ? 0 : kNotStealable);
    if (!extent) return nb::none();
    auto holding = hold(process.member, *extent);
    map_anew_if_robbed(member, {holding});
    nb::object owner = nb::borrow(self);
    return wrap_region(process.region_type, {owner, std::move(holding), {0, nbytes}, {}, {}});
}

// A name stays in its slot after its bearer has gone, until the slot has another one.
std::string name_of(const Table& table, const Peer& peer) {
    if (peer.id == kMmuId) return "(rack mmu)";
    if (table.incarnation(peer.id) != peer.incarnation) return {};  // of another group, or long gone
    const Slot& slot = table.slot(peer.id);
    return {slot.name, strnlen(slot.name, kNameBytesMax)};
}

nb::list as_regions(const nb::object& owner, ProcessBase& process, std::vector<Accepted> accepted) {
    nb::list regions;
    const Table table = process.member->attachment.table();
    // All are held before a first Python object is made: that may run other code of the program, which may
    // find that memory was stolen and forget all mappings but those of what is held.
    std::vector<std::shared_ptr<Holding>> holdings;
    holdings.reserve(accepted.size());
    for (const Accepted& a : accepted) holdings.push_back(hold(process.member, a.extent));
    map_anew_if_robbed(*process.member, holdings);
    for (size_t i = 0; i < accepted.size(); i++) {
        Accepted& a = accepted[i];
        const uint64_t bytes = holdings[i]->nbytes();
        regions.append(wrap_region(
            process.region_type,
            {owner, std::move(holdings[i]), {0, bytes}, std::move(a.tag), name_of(table, a.sender)}));
    }
    return regions;
}

nb::list take_waiting(const nb::object& owner, ProcessBase& process, uint32_t inbox, size_t limit) {
    return as_regions(owner, process, process.usable().attachment.accept(inbox, limit));
}

// What waits for a dead process whose heir this one is.
nb::list inherit(nb::handle_t<ProcessBase> self, uint32_t dead, uint32_t incarnation, size_t limit) {
    ProcessBase& process = *nb::inst_ptr<ProcessBase>(self);
    if (dead == 0 || dead > kMaxProcessId) raise_error("ValueError", "%u is no process id", dead);
    return as_regions(nb::borrow(self), process,
                      process.usable().attachment.inherit({dead, incarnation}, limit));
}

bool holds(const Member& member, const Extent& extent) {
    for (const Holding* holding : member.holdings)
        if (!holding->is_reading())
            for (const PlacedExtent& piece : holding->pieces())
                if (piece.extent.descriptor == extent.descriptor && piece.extent.word == extent.word)
                    return true;
    return false;
}

// What the Rack MMU has stolen for this process from that life of a process, as regions sorted by address.
nb::list adopt(nb::handle_t<ProcessBase> self, uint32_t victim, uint32_t incarnation) {
    ProcessBase& process = *nb::inst_ptr<ProcessBase>(self);
    nb::object owner = nb::borrow(self);
    Member& member = process.usable();
    take_stock();  // it may be stolen from another attachment of this program, whose loss comes first
    const std::string from = name_of(member.attachment.table(), {victim % kIdCount, incarnation});
    std::vector<std::shared_ptr<Holding>> holdings;  // all of them before a Python object is made, as above
    for (const Extent& e : member.attachment.adopt({victim, incarnation},
                                                   [&](const Extent& held) { return holds(member, held); }))
        holdings.push_back(hold(process.member, e));
    map_anew_if_robbed(member, holdings);
    nb::list regions;
    for (std::shared_ptr<Holding>& holding : holdings) {
        const uint64_t bytes = holding->nbytes();
        regions.append(wrap_region(process.region_type, {owner, std::move(holding), {0, bytes}, {}, from}));
    }
    return regions;
}

// Of whoever bears that name and has not left the table.
void map_ahead(ProcessBase& process, const std::string& victim) {
    Attachment& attachment = process.usable().attachment;
    const Table table = attachment.table();
    for (uint32_t id = 1; id <= kMaxProcessId; id++)
        if (table.life(id) != Life::kEmpty && name_of(table, {id, table.incarnation(id)}) == victim)
            attachment.map_ahead(id);
}

// Waits in slices without the GIL, looking for signals between them. True when `ready`.
template <class Ready>
bool wait(const Ready& ready, std::atomic<uint32_t>& bell, std::atomic<uint32_t>& sleepers, int64_t spin_ns,
          int64_t timeout_ns) {
    const int64_t start = monotonic_ns();
    for (;;) {
        const int64_t waited = monotonic_ns() - start;
        const int64_t left = timeout_ns < 0 ? INT64_MAX / 2 : timeout_ns - waited;
        const int64_t spin = spin_ns > waited ? spin_ns - waited : 0;
        const bool came =
            without_gil([&] { return wait_until(ready, bell, sleepers, spin, left > 0 ? left : 0); });
        if (came) return true;
        if (PyErr_CheckSignals() != 0) throw nb::python_error();
        if (timeout_ns >= 0 && monotonic_ns() - start >= timeout_ns) return false;
    }
}

nb::list accept(nb::handle_t<ProcessBase> self, uint32_t inbox_id, size_t limit, int64_t timeout_ns) {
    ProcessBase& process = *nb::inst_ptr<ProcessBase>(self);
    nb::object owner = nb::borrow(self);
    nb::list regions = take_waiting(owner, process, inbox_id, limit);
    if (nb::len(regions) > 0 || timeout_ns == 0) return regions;
    const std::shared_ptr<Member> member = process.member;
    const Table table = member->attachment.table();
    Slot& slot = table.slot(inbox_id);
    const Inbox inbox(table, inbox_id);
    const auto ready = [&] { return !member->usable || inbox.ready(); };
    const int64_t deadline = monotonic_ns() + timeout_ns;
    for (;;) {
        const int64_t left = timeout_ns < 0 ? -1 : deadline - monotonic_ns();
        if (timeout_ns >= 0 && left <= 0) return regions;
        if (!wait(ready, slot.doorbell, slot.sleepers, process.spin_ns, left)) return regions;
        regions = take_waiting(owner, process, inbox_id, limit);  // another thread may have been faster
        if (nb::len(regions) > 0) return regions;
    }
}

// True when something is waiting; for asyncio's helper thread, which accepts nothing itself.
bool wait_ready(ProcessBase& process, uint32_t inbox_id, int64_t timeout_ns) {
    const std::shared_ptr<Member> member = process.member;
    process.usable();
    const Table table = member->attachment.table();
    const Inbox inbox(table, inbox_id);
    Slot& slot = table.slot(inbox_id);
    const auto ready = [&] { return !member->usable || inbox.ready(); };
    return wait(ready, slot.doorbell, slot.sleepers, 0, timeout_ns);
}

bool wait_for_space(ProcessBase& process, uint32_t inbox_id, uint64_t capacity, int64_t timeout_ns) {
    const std::shared_ptr<Member> member = process.member;
    process.usable();
    const Table table = member->attachment.table();
    Slot& slot = table.slot(inbox_id);
    const Inbox inbox(table, inbox_id);
    const auto ready = [&] {
        return !member->usable || inbox.depth() < capacity || table.life(inbox_id) != Life::kLive;
    };
    return wait(ready, slot.space_bell, slot.space_waiters, process.spin_ns, timeout_ns);
}

void check_tag(const nb::bytes& tag) {
    if (tag.size() > kTagBytesMax)
        raise_error("TagTooLong", "a tag has at most %u bytes, this one has %zu; put more into the region",
                    kTagBytesMax, tag.size());
}

void check_grantable(const Member& member, const RegionBase& region) {
    if (region.holding->member().get() != &member)
        raise_error("ValueError", "a region can be granted only by the process that owns it");
    region.require_owned();
    region.require_memory("granted; use send()");
    region.require_unborrowed("granted");
    region.require_unfrozen("granted");
}

// The regions' memory as far as it fits; what does not stays with the caller.
GrantResult grant_regions(Member& member, const std::vector<RegionBase*>& regions, const Peer& to,
                          const nb::bytes& tag, const std::string& name, uint64_t capacity) {
    std::vector<Extent> extents;
    extents.reserve(regions.size());
    for (RegionBase* region : regions) {
        const auto extent = region->holding->take_out(region->holding->pages_of(region->span));
        if (!extent) break;
        extents.push_back(*extent);
    }
    const auto put_back = [&](size_t from) {
        for (size_t i = from; i < extents.size(); i++)
            regions[i]->holding->put_in(extents[i], regions[i]->span.start);
    };
    if (extents.size() < regions.size()) {
        put_back(0);
        regions[extents.size()]->require_unstolen();
        raise_error("ValueError", "these regions overlap, or the V2P table has no descriptor left");
    }
    GrantResult result;
    try {
        result = member.attachment.grant(to, extents, {tag.c_str(), tag.size()}, capacity);
    } catch (...) {
        put_back(0);
        throw;
    }
    for (size_t i = 0; i < result.granted; i++) regions[i]->holding->fate = "was granted to '" + name + "'";
    put_back(result.granted);
    if (result.status == GrantStatus::kLost) regions[result.granted]->require_unstolen();
    if (result.trouble) std::rethrow_exception(result.trouble);
    return result;
}

nb::object grant(ProcessBase& process, const nb::list& regions, size_t first, uint32_t to,
                 uint32_t incarnation, const nb::bytes& tag, const std::string& name, uint64_t capacity) {
    Member& member = process.usable();
    check_tag(tag);
    std::vector<RegionBase*> handles;
    handles.reserve(nb::len(regions));
    for (size_t i = first; i < nb::len(regions); i++) {
        if (!nb::isinstance<RegionBase>(regions[i]))
            raise_error("TypeError", "only regions can be granted; element %zu of the batch is none", i);
        handles.push_back(nb::cast<RegionBase*>(regions[i]));
        check_grantable(member, *handles.back());
    }
    const GrantResult result = grant_regions(member, handles, {to, incarnation}, tag, name, capacity);
    return nb::make_tuple(static_cast<int>(result.status), result.granted);
}

int grant_one(ProcessBase& process, RegionBase& region, uint32_t to, uint32_t incarnation,
              const nb::bytes& tag, const std::string& name) {
    Member& member = process.usable();
    check_tag(tag);
    check_grantable(member, region);
    return static_cast<int>(
        grant_regions(member, {&region}, {to, incarnation}, tag, name, kInboxCells).status);
}

// For a grant that the daemon carries out: the extent leaves this process's hands, closed.
nb::object surrender(ProcessBase& process, RegionBase& region) {
    Attachment& attachment = process.usable().attachment;
    region.require_owned();
    region.require_memory("granted");
    region.require_unborrowed("granted");
    region.require_unfrozen("granted");
    const auto extent = region.holding->take_out(region.holding->pages_of(region.span));
    if (!extent) region.require_unstolen();
    if (!extent) raise_error("RackMemoryError", "the V2P table has no descriptor left");
    try {
        attachment.close_pages(*extent);
    } catch (...) {
        region.holding->put_in(*extent, region.span.start);
        throw;
    }
    return nb::make_tuple(extent->descriptor, extent->word.bits);
}

// The grant failed. Either the MMU has never had the extent, or it has given it back, by the word that
// Steward::restore makes. Any other word is another extent's, or this one's with a later life of its own.
void take_back(ProcessBase& process, RegionBase& region, uint32_t descriptor, uint64_t word) {
    Attachment& attachment = process.usable().attachment;
    if (descriptor >= kMaxExtents) raise_error("ValueError", "there is no descriptor %u", descriptor);
    const OwnerWord before{word};
    const OwnerWord restored = before.next(State::kOwned, kMmuId).next(State::kOwned, attachment.id());
    const Extent extent{descriptor, attachment.table().owner(descriptor)};
    if (!(extent.word == before) && !(extent.word == restored)) return;
    attachment.open_pages(extent);
    region.holding->put_in(extent, region.span.start);
}

// A handle on what is already held at `place`: of the bytes from `address` on as many as are held with it.
nb::object region_at(nb::handle_t<ProcessBase> self, uint64_t place, uint64_t address, uint64_t nbytes) {
    ProcessBase& process = *nb::inst_ptr<ProcessBase>(self);
    for (Holding* holding : process.usable().holdings) {
        const uint64_t start = holding->address(), end = start + holding->nbytes();
        if (place < start || place >= end || holding->is_reading()) continue;
        const Span wanted{std::max(address, start) - start, std::min(address + nbytes, end) - start};
        for (const Span& owned : holding->remaining(wanted)) {
            if (place - start < owned.start || place - start >= owned.end) continue;
            nb::object owner = nb::borrow(self);
            return wrap_region(process.region_type, {owner, holding->shared_from_this(), owned, {}, {}});
        }
    }
    return nb::none();
}

nb::object find(ProcessBase& process, const std::string& name) {
    const Table table = process.usable().attachment.table();
    for (uint32_t id = 1; id <= kMaxProcessId; id++) {
        if (table.life(id) != Life::kLive || name_of(table, {id, table.incarnation(id)}) != name) continue;
        return nb::make_tuple(id, table.incarnation(id));
    }
    return nb::none();
}

size_t live_views(ProcessBase& process) {
    size_t views = 0;
    for (const Holding* holding : process.member->holdings) views += holding->borrows_of({0, UINT64_MAX});
    return views;
}

// From here on nothing of the rack can be reached through this process: its pages are closed, and freed
// by the MMU, which learns of it by the control plane. In the child of a fork they were never mapped.
void leave(ProcessBase& process, bool forked) {
    Member& member = *process.member;
    if (!member.usable) return;
    if (!forked) look_around(member);
    member.usable = false;
    if (!forked) seats().leave(member);
    for (Holding* holding : member.holdings) holding->forget();
}

}  // namespace

Seats& seats() {
    static Seats seats;
    return seats;
}

Member& ProcessBase::usable() const {
    if (!member->usable)
        raise_error("NotAttached",
                    "this process is not attached to the rack: it has detached, or is the "
                    "child of a fork; attach it under a name of its own");
    look_around(*member);
    return *member;
}

void bind_process(nb::module_& m) {
    using namespace nb::literals;
    nb::class_<ProcessBase>(m, "ProcessBase", nb::is_weak_referenceable())
        .def("__init__", &init, "table"_a, "id"_a, "rack"_a, "open_slab"_a, "region_type"_a, "spin"_a)
        .def_prop_ro("id", [](ProcessBase& p) { return p.member->attachment.id(); })
        .def_prop_ro("table", [](ProcessBase& p) { return p.table; })
        .def_prop_ro("attached", [](ProcessBase& p) { return p.member->usable; })
        .def_prop_ro("live_views", &live_views)
        .def_prop_ro("mappings",
                     [](ProcessBase& p) {
                         AddressSpace& space = p.usable().attachment.space();
                         return nb::make_tuple(space.mappings_bound(), space.mappings_limit());
                     })
        .def("_alloc", &alloc, "nbytes"_a, "huge"_a, "element"_a, "stealable"_a = true, "packed"_a = false)
        .def("_adopt", &adopt, "victim"_a, "incarnation"_a)
        .def("_count_resumed", [](ProcessBase& p) { p.usable().attachment.count_resumed(); })
        .def("_map_ahead", &map_ahead, "victim"_a)
        .def("_inherit", &inherit, "dead"_a, "incarnation"_a, "limit"_a)
        .def("_accept", &accept, "inbox"_a, "limit"_a, "timeout_ns"_a)
        .def("_grant", &grant, "regions"_a, "first"_a, "to"_a, "incarnation"_a, "tag"_a, "name"_a,
             "capacity"_a)
        .def("_grant_one", &grant_one, "region"_a, "to"_a, "incarnation"_a, "tag"_a, "name"_a)
        .def(
            "_send",
            [](ProcessBase& p, uint32_t to, uint32_t incarnation, const nb::bytes& message,
               uint64_t capacity) {
                check_tag(message);
                return static_cast<int>(p.usable().attachment.send(
                    {to, incarnation}, {message.c_str(), message.size()}, capacity));
            },
            "to"_a, "incarnation"_a, "message"_a, "capacity"_a)
        .def("_wait_for_space", &wait_for_space, "inbox"_a, "capacity"_a, "timeout_ns"_a)
        .def(
            "_depth",
            [](ProcessBase& p, uint32_t inbox) {
                return Inbox(p.usable().attachment.table(), inbox).depth();
            },
            "inbox"_a)
        .def("_wait_ready", &wait_ready, "inbox"_a, "timeout_ns"_a)
        .def("_surrender", &surrender, "region"_a)
        .def("_take_back", &take_back, "region"_a, "descriptor"_a, "word"_a)
        .def("_find", &find, "name"_a)
        .def("_region_at", &region_at, "place"_a, "address"_a, "nbytes"_a)
        .def("_leave", &leave, "forked"_a);
}

}  // namespace bequest
