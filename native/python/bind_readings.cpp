// bequest._core.ReadingBase: a frozen region that this process reads, and its buffer protocol; and how a
// region is frozen and thawed.
#include <nanobind/stl/string.h>

#include "python.hpp"

namespace bequest {

namespace {

struct ReadingBase {
    nb::object process;
    std::shared_ptr<Holding> holding;
    Registration registration = {};

    Span span() const { return {0, holding->nbytes()}; }
    Holding& open() const;    // raises NotAttached, RegionMoved
    Holding& usable() const;  // besides, MemoryFailure
};

Holding& ReadingBase::open() const {
    if (!holding->member()->usable)
        raise_error("NotAttached",
                    "the process that read this region has detached, or was forked: its memory is not here");
    if (!holding->is_reading()) raise_error("RegionMoved", "this reading is closed; read() the region again");
    return *holding;
}

Holding& ReadingBase::usable() const {
    if (holding->member()->usable) {
        look_around(*holding->member());
        if (const Loss* loss = holding->loss_of(span())) raise_lost(*holding, *loss);
    }
    return open();
}

int get_buffer(PyObject* self, Py_buffer* view, int flags) {
    try {
        Holding& holding = nb::inst_ptr<ReadingBase>(self)->usable();
        if (flags & PyBUF_WRITABLE)
            raise_error("RegionFrozen", "this is a reading of a frozen region, which nobody may write to");
        look_who_stands_first();
        void* data = pointer(holding.address());
        if (PyBuffer_FillInfo(view, self, data, static_cast<Py_ssize_t>(holding.nbytes()), 1, flags) != 0)
            return -1;
        holding.borrow({0, holding.nbytes()});
        return 0;
    } catch (...) {  // nothing may pass through the C code that asks
        set_python_error(std::current_exception());
        view->obj = nullptr;
        return -1;
    }
}

void release_buffer(PyObject* self, Py_buffer*) {
    Holding& holding = *nb::inst_ptr<ReadingBase>(self)->holding;
    holding.give_back({0, holding.nbytes()});
}

PyType_Slot reading_slots[] = {
    {Py_bf_getbuffer, reinterpret_cast<void*>(get_buffer)},
    {Py_bf_releasebuffer, reinterpret_cast<void*>(release_buffer)},
    {0, nullptr},
};

void close(ReadingBase& reading) {
    Holding& holding = *reading.holding;
    if (!holding.member()->usable) return;
    if (const size_t views = holding.borrows_of(reading.span()); views > 0)
        raise_error("BufferError", "%zu view%s of this reading %s alive; release %s before it is closed",
                    views, views == 1 ? "" : "s", views == 1 ? "is" : "are", views == 1 ? "it" : "them");
    holding.let_go();
}

// None if it is not there, or not frozen, any more.
nb::object read(nb::handle_t<ProcessBase> self, nb::handle type, uint32_t descriptor, uint64_t birth,
                uint64_t address) {
    ProcessBase& process = *nb::inst_ptr<ProcessBase>(self);
    const auto held = process.usable().attachment.read({descriptor, birth, address});
    if (!held) return nb::none();
    auto holding = hold(process.member, *held);
    nb::object object = nb::inst_alloc(type);
    auto* made = new (nb::inst_ptr<ReadingBase>(object)) ReadingBase{nb::borrow(self), std::move(holding)};
    nb::inst_mark_ready(object);
    made->registration.enter(*made->holding, object.ptr());
    return object;
}

void require_whole(const RegionBase& region, const char* verb) {
    if (region.span.start != 0 || region.span.end != region.holding->nbytes())
        raise_error("BadSize", "a region is %s as a whole; split() it to have a part of it %s", verb, verb);
}

// All of a region as one extent, as long as this lives.
class WholeExtent {
public:
    explicit WholeExtent(RegionBase& region) : holding_(*region.holding) {
        const auto taken = holding_.take_out(holding_.pages_of(region.span));
        if (!taken) region.require_unstolen();
        if (!taken) raise_error("RackMemoryError", "this region is in parts that cannot be made one again");
        extent = *taken;
    }
    ~WholeExtent() { holding_.put_in(extent, 0); }
    WholeExtent(const WholeExtent&) = delete;
    Extent extent;

private:
    Holding& holding_;
};

bool is_kept(const ReadingBase& reading) {
    const Holding& holding = reading.open();
    const Table table = holding.member()->attachment.table();
    return !table.owner(holding.read_extent().descriptor).is(State::kFrozen, kMmuId);
}

nb::tuple name_of(const RegionBase& region) {
    const Extent& e = region.holding->pieces().front().extent;
    const Table table = region.holding->member()->attachment.table();
    return nb::make_tuple(e.descriptor, uint64_t{table.extent(e.descriptor).birth}, region.holding->address(),
                          region.holding->nbytes());
}

nb::tuple freeze(RegionBase& region) {
    region.require_owned();
    region.require_memory("frozen");
    require_whole(region, "frozen");
    if (region.holding->is_frozen()) return name_of(region);
    region.require_unborrowed("frozen");
    bool frozen = false;
    {
        WholeExtent whole(region);
        frozen = region.holding->member()->attachment.freeze(whole.extent);
    }
    if (!frozen) region.require_unstolen();
    return name_of(region);
}

std::string named_readers(const Table& table, uint32_t descriptor) {
    std::string names;
    for (const uint32_t id : readers_of(table, descriptor)) {
        const Slot& slot = table.slot(id);
        names +=
            (names.empty() ? "'" : ", '") + std::string(slot.name, strnlen(slot.name, kNameBytesMax)) + "'";
    }
    return names.empty() ? "a process that has let go of it meanwhile" : names;
}

void thaw(RegionBase& region) {
    region.require_owned();
    require_whole(region, "thawed");
    if (!region.holding->is_frozen()) return;
    Thaw thawed = Thaw::kLost;
    {
        WholeExtent whole(region);
        thawed = region.holding->member()->attachment.thaw(whole.extent);
    }
    if (thawed == Thaw::kLost) region.require_unstolen();
    if (thawed == Thaw::kIsRead) {
        const Table table = region.holding->member()->attachment.table();
        const uint32_t descriptor = region.holding->pieces().front().extent.descriptor;
        raise_error("RegionFrozen",
                    "this region is being read, by %s; it cannot be thawed before they let go of it",
                    named_readers(table, descriptor).c_str());
    }
}

}  // namespace

void bind_readings(nb::module_& m) {
    using namespace nb::literals;
    nb::class_<ReadingBase>(m, "ReadingBase", nb::type_slots(reading_slots),
                            "A frozen region that this process reads. Made by read() only.")
        .def_prop_ro("process", [](ReadingBase& r) { return r.process; })
        .def_prop_ro("address", [](ReadingBase& r) { return r.holding->address(); })
        .def_prop_ro("nbytes", [](ReadingBase& r) { return r.holding->nbytes(); })
        .def_prop_ro("views", [](ReadingBase& r) { return r.holding->borrows_of(r.span()); })
        .def_prop_ro("kept", &is_kept)
        .def_prop_ro("closed",
                     [](ReadingBase& r) { return !r.holding->member()->usable || !r.holding->is_reading(); })
        .def("close", &close);
    m.def("read_frozen", &read, "process"_a, "type"_a, "descriptor"_a, "birth"_a, "address"_a);
    m.def("freeze", &freeze, "region"_a);
    m.def("thaw", &thaw, "region"_a);
}

}  // namespace bequest
