// bequest._core.RegionBase: the handle of memory that this process owns, and its buffer protocol.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <ctime>

#include "seats.hpp"

namespace bequest {

// Whoever installs a handler after us would get the faults of this view. To look takes two system calls, more
// than to make a view: so at most once in each tick of the kernel's coarse clock, some milliseconds.
void look_who_stands_first() {
    static std::atomic<int64_t> last{-1};
    timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    const int64_t tick = now.tv_sec * 1'000'000'000ll + now.tv_nsec;
    if (last.exchange(tick, std::memory_order_relaxed) != tick) stand_first_in_line();
}

namespace {

unsigned char nothing[1];  // where the buffer of an empty region points

int get_buffer(PyObject* self, Py_buffer* view, int flags) {
    try {
        RegionBase& region = *nb::inst_ptr<RegionBase>(self);
        region.require_owned();
        const uint64_t bytes = region.span.end - region.span.start;
        void* data =
            bytes == 0 ? nothing : reinterpret_cast<void*>(region.holding->address() + region.span.start);
        const bool is_frozen = region.holding->is_frozen();
        const bool is_sealed = region.holding->is_sealed();
        if (is_frozen && (flags & PyBUF_WRITABLE))
            raise_error("RegionFrozen", "this region is frozen, so it can only be read; thaw() it to write");
        if (is_sealed && (flags & PyBUF_WRITABLE))
            raise_error("RegionSealed",
                        "this region is sealed, so it can only be read; unseal() it to write");
        look_who_stands_first();
        if (PyBuffer_FillInfo(view, self, data, static_cast<Py_ssize_t>(bytes), is_sealed || is_frozen,
                              flags) != 0)
            return -1;
        region.holding->borrow(region.span);
        return 0;
    } catch (...) {  // nothing may pass through the C code that asks
        set_python_error(std::current_exception());
        view->obj = nullptr;
        return -1;
    }
}

void release_buffer(PyObject* self, Py_buffer*) {
    RegionBase& region = *nb::inst_ptr<RegionBase>(self);
    region.holding->give_back(region.span);
}

PyType_Slot region_slots[] = {
    {Py_bf_getbuffer, reinterpret_cast<void*>(get_buffer)},
    {Py_bf_releasebuffer, reinterpret_cast<void*>(release_buffer)},
    {0, nullptr},
};

// The last handle is gone. Memory that nobody can name any more is freed, and that is worth a warning.
void drop(Holding* holding) {
    Member& member = *holding->member();
    if (member.usable && !(holding->is_empty() && !holding->has_bad({0, UINT64_MAX}))) {
        PyObject *type, *value, *trace;
        PyErr_Fetch(&type, &value, &trace);
        if (!holding->quiet && holding->stands({0, UINT64_MAX}) && !holding->is_empty() &&
            PyErr_ResourceWarning(nullptr, 1,
                                  "a region of %zu bytes was dropped and is freed; "
                                  "grant it, free it, or use it in a with statement",
                                  static_cast<size_t>(holding->nbytes())) != 0)
            PyErr_WriteUnraisable(nullptr);
        try {
            holding->free_all();
        } catch (...) {
            set_python_error(std::current_exception());
            PyErr_WriteUnraisable(nullptr);
        }
        PyErr_Restore(type, value, trace);
    }
    delete holding;
}

nb::object part(nb::handle_t<RegionBase> self, uint64_t start, uint64_t end) {
    const RegionBase& whole = *nb::inst_ptr<RegionBase>(self);
    RegionBase slice{whole.process,
                     whole.holding,
                     {whole.span.start + start, whole.span.start + end},
                     whole.tag,
                     whole.sender};
    slice.require_owned();
    return wrap_region(self.type(), std::move(slice));
}

uint64_t free_remaining(RegionBase& region);

// All of it was freed: what was held for its sake goes too, unless somebody has a handle of that.
void part_from_companions(Holding& holding) {
    if (holding.is_empty()) std::exchange(holding.companions, {});
}

uint64_t free_region(RegionBase& region) {
    if (region.usable().has_bad(region.span)) return free_remaining(region);
    region.require_owned();
    region.require_unborrowed("freed");
    if (region.span.start == region.span.end) return 0;
    region.require_whole_if_frozen("freed");
    const uint64_t freed = region.holding->free_span(region.holding->pages_of(region.span));
    region.holding->fate = "was freed";
    part_from_companions(*region.holding);
    return freed;
}

// What is still owned of a region, or of a part: for the end of a with statement.
uint64_t free_remaining(RegionBase& region) {
    Holding& holding = region.usable();
    region.require_unborrowed("freed");
    region.require_whole_if_frozen("freed");
    uint64_t freed = holding.free_bad(region.span);
    for (const Span& owned : holding.remaining(region.span))
        freed += holding.free_span(holding.pages_of(owned));
    if (freed > 0) holding.fate = "was freed";
    part_from_companions(holding);
    return freed;
}

// Cuts at the offsets; the handle is spent, the parts are regions of their own.
nb::list split(nb::handle_t<RegionBase> self, const std::vector<uint64_t>& offsets) {
    RegionBase& region = *nb::inst_ptr<RegionBase>(self);
    region.require_owned();
    region.require_memory("split");
    region.require_unfrozen("split");
    region.require_unborrowed("split");
    nb::list parts;
    uint64_t start = region.span.start;
    const uint64_t end = region.span.end;
    for (size_t i = 0; i <= offsets.size(); i++) {
        const uint64_t stop = i < offsets.size() ? region.span.start + offsets[i] : end;
        const auto extent = region.holding->take_out(region.holding->pages_of({start, stop}));
        if (!extent) region.require_unstolen();
        if (!extent) raise_error("RackMemoryError", "the V2P table has no descriptor left for a split");
        auto holding = hold(region.holding->member(), *extent);
        const uint64_t bytes = holding->nbytes();
        parts.append(wrap_region(
            self.type(), {region.process, std::move(holding), {0, bytes}, region.tag, region.sender}));
        start = stop;
    }
    region.holding->fate = "was split";
    return parts;
}

nb::object merge(nb::handle_t<RegionBase> self, RegionBase& other) {
    RegionBase& region = *nb::inst_ptr<RegionBase>(self);
    region.require_owned();
    other.require_owned();
    region.require_memory("merged");
    other.require_memory("merged");
    region.require_unfrozen("merged");
    other.require_unfrozen("merged");
    region.require_unborrowed("merged");
    other.require_unborrowed("merged");
    const Span left = region.holding->pages_of(region.span), right = other.holding->pages_of(other.span);
    if (region.holding->member() != other.holding->member() ||
        region.holding->address() + left.end != other.holding->address() + right.start ||
        left.end != region.span.end)
        raise_error("ValueError",
                    "only neighbours can be merged: the second region must begin where "
                    "the first one ends");
    auto a = region.holding->take_out(left);
    auto b = a ? other.holding->take_out(right) : std::nullopt;
    Attachment& attachment = region.holding->member()->attachment;
    const Table table = attachment.table();
    const bool alike = !a || !b || table.flags(a->descriptor) == table.flags(b->descriptor);
    const bool sealed_apart = a && b && table.seal(a->descriptor) != table.seal(b->descriptor);
    const bool merged = a && b && table.adjacent(*a, *b) && attachment.merge(*a, *b);
    if (!merged) {
        if (a) region.holding->put_in(*a, left.start);
        if (b) other.holding->put_in(*b, right.start);
        raise_error("ValueError", sealed_apart ? "these two regions are not under one seal; unseal them first"
                                  : alike ? "these two regions lie in different slabs and cannot be one"
                                          : "one of these two regions is stealable and the other is not");
    }
    region.holding->fate = other.holding->fate = "was merged";
    auto holding = hold(region.holding->member(), *a);
    const uint64_t bytes = holding->nbytes();
    return wrap_region(self.type(),
                       {region.process, std::move(holding), {0, bytes}, region.tag, region.sender});
}

// --- seals (protocol/seal_desk.py)
// ----------------------------------------------------------------------------

nb::tuple placed(const Table& table, const PlacedExtent& piece, const Span& within) {
    const uint32_t slab = table.extent(piece.extent.descriptor).slab;
    return nb::make_tuple(slab, piece.address + within.start - table.slab_record(slab).address,
                          within.end - within.start, table.seal(piece.extent.descriptor));
}

// Of what it covers of each piece: (slab, offset in the slab, bytes, number of the seal or 0).
nb::list seals(RegionBase& region) {
    region.require_owned();
    nb::list found;
    const Span pages = region.holding->pages_of(region.span);
    const Table table = region.holding->member()->attachment.table();
    for (const PlacedExtent& piece : region.holding->pieces()) {
        const uint64_t start = piece.address - region.holding->address();
        const uint64_t bytes = piece.extent.word.pages() * kPageBytes;
        const uint64_t low = std::max(start, pages.start), high = std::min(start + bytes, pages.end);
        if (low < high) found.append(placed(table, piece, {low - start, high - start}));
    }
    return found;
}

void require_whole(const RegionBase& region, const char* verb) {
    if (region.span.start != 0 || region.span.end != region.holding->nbytes())
        raise_error("BadSize", "a region is %s as a whole; split() it to have a part of it %s", verb, verb);
}

// It counts as a borrow while it lasts: the element is asked meanwhile, and other threads have the GIL.
void start_sealing(Holding& holding) {
    holding.sealing = true;
    holding.borrow({0, holding.nbytes()});
}

void stop_sealing(Holding& holding) {
    if (holding.sealing) holding.give_back({0, holding.nbytes()});
    holding.sealing = false;
}

void end_sealing(RegionBase& region) {
    Holding& holding = *region.holding;
    stop_sealing(holding);
    for (const PlacedExtent& piece : holding.pieces()) holding.member()->attachment.unseal(piece.extent);
}

// From here on it can only be read; what is to be summed.
nb::list begin_sealing(RegionBase& region) {
    region.require_owned();
    region.require_memory("sealed");
    require_whole(region, "sealed");
    region.require_unborrowed("sealed");
    Holding& holding = *region.holding;
    start_sealing(holding);
    try {
        for (const PlacedExtent& piece : holding.pieces())
            holding.member()->attachment.protect_pages(piece.extent);
    } catch (...) {
        end_sealing(region);
        throw;
    }
    return seals(region);
}

// The commit points. False if the region has changed since it was begun: then nothing of it is sealed.
bool commit_seals(RegionBase& region, const std::vector<std::pair<uint64_t, uint32_t>>& numbers) {
    Holding& holding = *region.holding;
    bool all = holding.sealing && holding.member()->usable && numbers.size() == holding.pieces().size();
    for (size_t i = 0; all && i < numbers.size(); i++) {
        const PlacedExtent& piece = holding.pieces()[i];
        all = piece.address == numbers[i].first &&
              holding.member()->attachment.seal(piece.extent, numbers[i].second);
    }
    if (all) stop_sealing(holding);
    return all;
}

}  // namespace

Holding& RegionBase::usable() const {
    if (!holding->member()->usable)
        raise_error("NotAttached",
                    "the process that owned this region has detached, or was forked: its "
                    "memory is not here; attach to the rack in this process");
    look_around(*holding->member());
    return *holding;
}

void RegionBase::require_owned() const {
    const Holding& h = usable();
    if (!h.stands(span)) take_stock();
    if (!h.owns(span)) {
        if (const Loss* loss = h.loss_of(span)) raise_lost(h, *loss);
        const bool all = h.is_spent();
        raise_error("RegionMoved", "%s this region (%zu bytes at %#zx) %s; it is no longer yours",
                    all ? "the memory of" : "a part of", static_cast<size_t>(h.nbytes()),
                    static_cast<size_t>(h.address()), h.fate.empty() ? "has moved" : h.fate.c_str());
    }
}

void RegionBase::require_unstolen() const {
    take_stock();
    if (const Loss* loss = holding->loss_of(span)) raise_lost(*holding, *loss);
}

void RegionBase::require_unfrozen(const char* verb) const {
    if (holding->is_frozen())
        raise_error("RegionFrozen",
                    "this region is frozen, and others may read it; thaw() it before it is %s", verb);
}

void RegionBase::require_whole_if_frozen(const char* verb) const {
    if (holding->is_frozen() && (span.start != 0 || span.end != holding->nbytes()))
        raise_error("BadSize", "a frozen region is %s as a whole; this is a part of one", verb);
}

void RegionBase::require_memory(const char* verb) const {
    if (span.start == span.end)
        raise_error("BadSize", "a message has a tag and no memory; it cannot be %s", verb);
}

void RegionBase::require_unborrowed(const char* verb) const {
    const char* whose = "this region";
    size_t views = holding->borrows_of(span);
    const Span pages = holding->pages_of(span);
    const uint64_t start = holding->address() + pages.start / kPageBytes * kPageBytes,
                   end = holding->address() + pages.end;
    if (views == 0 && holding->member()->attachment.space().was_lost(start, end)) {
        views = seats().views_of(start, end);  // it was lost, and has come back
        whose = "an earlier region at its addresses, which was lost,";
    }
    if (views > 0)
        raise_error("BufferError", "%zu view%s of %s %s alive; release %s before it is %s", views,
                    views == 1 ? "" : "s", whose, views == 1 ? "is" : "are", views == 1 ? "it" : "them",
                    verb);
}

nb::object region_of(const Holding& holding) {
    auto* handle = static_cast<PyObject*>(holding.handle);
    if (!handle || Py_REFCNT(handle) == 0) return nb::none();
    return nb::borrow(handle);
}

std::shared_ptr<Holding> hold(const std::shared_ptr<Member>& member, const Extent& extent) {
    return {extent.descriptor == kNoDescriptor ? new Holding(member) : new Holding(member, extent), drop};
}

std::shared_ptr<Holding> hold(const std::shared_ptr<Member>& member, const HeldReading& reading) {
    return {new Holding(member, reading), drop};
}

nb::object wrap_region(nb::handle region_type, RegionBase&& region) {
    nb::object object = nb::inst_alloc(region_type);
    auto* made = new (nb::inst_ptr<RegionBase>(object)) RegionBase(std::move(region));
    nb::inst_mark_ready(object);
    if (made->span.start == 0 && made->span.end == made->holding->nbytes())
        made->registration.enter(*made->holding, object.ptr());
    return object;
}

void bind_region(nb::module_& m) {
    using namespace nb::literals;
    nb::class_<RegionBase>(m, "RegionBase", nb::type_slots(region_slots),
                           "Memory that this process owns. Made by alloc() and accept() only.")
        .def_prop_ro("process", [](RegionBase& r) { return r.process; })
        .def_prop_ro("address", [](RegionBase& r) { return r.holding->address() + r.span.start; })
        .def_prop_ro("nbytes", [](RegionBase& r) { return r.span.end - r.span.start; })
        .def_prop_ro("offset", [](RegionBase& r) { return r.span.start; })
        .def_prop_ro("tag", [](RegionBase& r) { return nb::bytes(r.tag.data(), r.tag.size()); })
        .def_prop_ro("sender", [](RegionBase& r) { return r.sender; })
        .def_prop_ro("_birth",
                     [](RegionBase& r) {
                         r.require_owned();
                         r.require_memory("told apart");
                         const Holding& holding = *r.holding;
                         const auto* piece = holding.piece_at(holding.address() + r.span.start);
                         const Table table = holding.member()->attachment.table();
                         return uint64_t{table.extent(piece->extent.descriptor).birth};
                     })
        .def_prop_ro("_stealable",
                     [](RegionBase& r) {
                         r.require_owned();
                         r.require_memory("asked that");
                         const Holding& holding = *r.holding;
                         const auto* piece = holding.piece_at(holding.address() + r.span.start);
                         const Table table = holding.member()->attachment.table();
                         return table.is_stealable(piece->extent.descriptor);
                     })
        .def_prop_ro("views", [](RegionBase& r) { return r.holding->borrows_of(r.span); })
        .def_prop_ro("owned",
                     [](RegionBase& r) {
                         if (!r.holding->member()->usable) return false;
                         look_around(*r.holding->member());
                         return r.holding->owns(r.span) && r.holding->stands(r.span);
                     })
        .def_prop_ro("remaining",
                     [](RegionBase& r) {
                         nb::list spans;
                         for (const Span& s : r.usable().remaining(r.span))
                             spans.append(nb::make_tuple(s.start - r.span.start, s.end - r.span.start));
                         return spans;
                     })
        .def_prop_ro("sealed", [](RegionBase& r) { return r.usable().is_sealed(); })
        .def_prop_ro("frozen", [](RegionBase& r) { return r.usable().is_frozen(); })
        .def("_seals", &seals)
        .def(
            "_check_whole", [](RegionBase& r, const std::string& verb) { require_whole(r, verb.c_str()); },
            "verb"_a)
        .def("_begin_sealing", &begin_sealing)
        .def("_commit_seals", &commit_seals, "numbers"_a)
        .def("_end_sealing", &end_sealing)
        .def("_part", &part, "start"_a, "end"_a)
        .def("_split", &split, "offsets"_a)
        .def("_merge", &merge, "other"_a)
        .def("_free", &free_region)
        .def("_free_remaining", &free_remaining)
        .def("_free_when_dropped", [](RegionBase& r) { r.holding->quiet = true; })
        .def("_set_fate", [](RegionBase& r, const std::string& fate) { r.holding->fate = fate; }, "fate"_a);
}

}  // namespace bequest
