// bequest._core.HeapBase.
#include "heap_handle.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <set>

#include "../heap/named_memory.hpp"
#include "../heap/removal.hpp"

namespace bequest {

namespace {

std::set<const HeapBase*>& open_heaps() {
    static std::set<const HeapBase*> heaps;
    return heaps;
}

// Two handles would not know of each other's changes, and a heap is not made in the middle of another.
void require_apart_from_others(const HeapMemory& memory) {
    for (const HeapBase* heap : open_heaps())
        if (heap->lies_in(memory) && heap->has_its_memory())
            raise<HeapMisuse>(
                "in these %lu bytes at %#lx lies memory of a heap that is open in this process already: use "
                "that one, or close it",
                memory.nbytes, memory.address);
}

HeapMemory memory_of(const Py_buffer& view) {
    return {reinterpret_cast<uint64_t>(view.buf), static_cast<uint64_t>(view.len)};
}

nb::object recovery_of(HeapBase& base) {
    const Heap::Recovery& recovery = base.usable().recovery();
    const char* did = recovery.rolled_forward ? "completed" : recovery.rolled_back ? "undone" : "clean";
    return nb::make_tuple(did, recovery.entries, recovery.nbytes);
}

nb::list roots_of(HeapBase& base) {
    nb::list all;
    for (const Root& root : base.usable().roots())
        all.append(
            nb::make_tuple(nb::bytes(root.name.data(), root.name.size()), name_of(root.kind), root.address));
    return all;
}

bool contains(HeapBase& base, nb::handle name) {
    return PyUnicode_Check(name.ptr()) && base.usable().find_root(nb::cast<std::string>(name)).has_value();
}

nb::object memory_named(HeapBase& base, nb::handle name) {
    const auto memory = find_memory(base.usable(), root_name(name));
    if (!memory) return nb::none();
    return base.view(memory->address, memory->nbytes);
}

nb::object make_memory_named(HeapBase& base, nb::handle name, uint64_t nbytes) {
    const HeapMemory memory = make_memory(base.usable(), root_name(name), nbytes);
    return base.view(memory.address, memory.nbytes);
}

}  // namespace

HeapBase::HeapBase(nb::object region, std::optional<uint64_t> heap_id, bool durable, nb::object grow)
    : grow_(std::move(grow)) {
    try {
        const HeapMemory memory = borrow(region);
        HeapOptions options{durable ? Medium::Backing::kFile : Medium::Backing::kRam,
                            [this](uint64_t least, uint64_t wished) { return this->grow(least, wished); },
                            [this](const HeapMemory& other) { return find(other); }};
        heap_ = heap_id ? Heap::create(memory, *heap_id, std::move(options))
                        : Heap::open(memory, std::move(options));
        keep_together();
        open_heaps().insert(this);
    } catch (...) {
        give_back();
        throw;
    }
}

HeapBase::~HeapBase() {
    open_heaps().erase(this);
    heap_.reset();
    give_back();
}

// Touches nothing of the heap's memory: that may be gone, by theft or in the child of a fork.
void HeapBase::give_back() {
    for (const auto& view : views_) PyBuffer_Release(view.get());
    views_.clear();
}

HeapMemory HeapBase::borrow(const nb::object& object) {
    if (!nb::isinstance<RegionBase>(object) || !nb::inst_ready(object))
        raise_error("TypeError", "a heap lies in a Region, which alloc() or accept() gives, not in a %s",
                    Py_TYPE(object.ptr())->tp_name);
    auto view = std::make_unique<Py_buffer>();
    const RegionBase& region = *nb::inst_ptr<RegionBase>(object);
    require_apart_from_others(
        {region.holding->address() + region.span.start, region.span.end - region.span.start});
    if (PyObject_GetBuffer(object.ptr(), view.get(), PyBUF_WRITABLE) != 0) throw nb::python_error();
    views_.push_back(std::move(view));
    regions_.append(object);
    return memory_of(*views_.back());
}

bool HeapBase::lies_in(const HeapMemory& memory) const {
    return std::any_of(views_.begin(), views_.end(), [&](const auto& view) {
        const HeapMemory own = memory_of(*view);
        return own.address < memory.address + memory.nbytes && memory.address < own.address + own.nbytes;
    });
}

bool HeapBase::has_its_memory() const {
    for (size_t i = 0; i < regions_.size(); i++) {
        const nb::object object = regions_[i];
        const RegionBase& region = *nb::inst_ptr<RegionBase>(object);
        const Holding& holding = *region.holding;
        if (!holding.member()->usable || !holding.owns(region.span) || !holding.stands(region.span))
            return false;
    }
    return true;
}

// A segment of this heap among what its owner has: the region that begins there.
bool HeapBase::find(const HeapMemory& memory) {
    nb::object first = regions_[0];
    const RegionBase& region = *nb::inst_ptr<RegionBase>(first);
    Holding* holding = region.holding->member()->holding_at(memory.address);
    if (!holding || holding->address() != memory.address || holding->nbytes() < memory.nbytes) return false;
    nb::object handle = region_of(*holding);
    const std::shared_ptr<Holding> kept = holding->weak_from_this().lock();
    if (handle.is_none() && region.holding->companions.contains(kept))
        handle = wrap_region(first.type(), {region.process, kept, {0, kept->nbytes()}, "", ""});
    if (handle.is_none()) return false;
    borrow(handle);
    return true;
}

// What it has grown by lives as long as its first region, by which it is opened, and not only as long as
// this handle of the heap. It is freed with that one, too, and no warning is due.
void HeapBase::keep_together() const {
    const auto holding_of = [this](size_t i) {
        const nb::object region = regions_[i];
        return nb::inst_ptr<RegionBase>(region)->holding;
    };
    const std::shared_ptr<Holding> first = holding_of(0);
    for (size_t i = 1; i < regions_.size(); i++) {
        const std::shared_ptr<Holding> other = holding_of(i);
        if (other != first && first->companions.insert(other).second) other->quiet = true;
    }
}

std::optional<HeapMemory> HeapBase::grow(uint64_t least, uint64_t wished) {
    if (grow_.is_none()) return std::nullopt;
    struct Growing {
        bool& is_growing;
        ~Growing() { is_growing = false; }
    } growing{is_growing_};
    is_growing_ = true;
    nb::object region = grow_(least, wished);
    if (region.is_none()) return std::nullopt;
    const HeapMemory memory = borrow(region);
    keep_together();
    return memory;
}

void HeapBase::extend(const nb::object& object) {
    Heap& heap = usable();
    const HeapMemory memory = borrow(object);
    try {
        const RegionBase& region = *nb::inst_ptr<RegionBase>(object);
        if (region.span.start != 0 || region.span.end != region.holding->nbytes())
            raise<HeapMisuse>("a heap grows by whole regions, and this is a part of one");
        heap.extend(memory);
    } catch (...) {
        PyBuffer_Release(views_.back().get());
        views_.pop_back();
        nb::del(regions_[regions_.size() - 1]);
        throw;
    }
    keep_together();
}

void HeapBase::require_owned() const {
    for (size_t i = 0; i < regions_.size(); i++) {
        nb::object region = regions_[i];
        nb::inst_ptr<RegionBase>(region)->require_owned();
    }
}

Heap& HeapBase::usable() const {
    if (!heap_) raise<HeapMisuse>("this heap has been closed");
    require_owned();
    if (is_growing_)
        raise<HeapMisuse>(
            "the heap is getting more memory in the middle of an operation: let the threads of a process "
            "share a lock");
    if (heap_->depth() > 0 && in_transaction_ != std::this_thread::get_id())
        raise<HeapMisuse>(
            "another thread is in the middle of a transaction on this heap: let the threads of a process "
            "share a lock");
    return *heap_;
}

uint64_t HeapBase::begin() {
    const uint64_t level = usable().begin();
    in_transaction_ = std::this_thread::get_id();
    return level;
}

std::unique_ptr<Journal> HeapBase::begin_journal() {
    auto journal = std::make_unique<Journal>(usable());
    in_transaction_ = std::this_thread::get_id();
    return journal;
}

// Whichever thread asks: what has been forgotten is undone where the garbage collector finds it. Nothing can
// be undone in memory that is ours no more, nor in the middle of an operation: that is left to whoever opens
// the heap next.
void HeapBase::undo(uint64_t level) {
    if (!heap_ || !heap_->is_under_way(level)) return;
    try {
        require_owned();
    } catch (...) {
        heap_->give_up();
        throw;
    }
    if (is_growing_)
        heap_->give_up();
    else
        heap_->abort_through(level);
}

// Of a region of its own, which is borrowed by it, whatever becomes of the heap.
nb::object HeapBase::view(uint64_t address, uint64_t nbytes) const {
    for (size_t i = 0; i < views_.size(); i++) {
        const uint64_t offset = address - reinterpret_cast<uint64_t>(views_[i]->buf);
        const auto length = static_cast<uint64_t>(views_[i]->len);
        if (offset >= length || nbytes > length - offset) continue;
        const nb::object region = regions_[i];
        const nb::object whole = nb::steal(PyMemoryView_FromObject(region.ptr()));
        if (!whole.is_valid()) throw nb::python_error();
        return whole[nb::slice(nb::int_(offset), nb::int_(offset + nbytes), nb::none())];
    }
    raise<CorruptHeap>("%lu bytes at %#lx are not in this heap", nbytes, address);
}

void HeapBase::close() {
    if (!heap_) return;
    if (heap_->depth() > 0) raise<HeapMisuse>("a heap is not closed in the middle of a transaction");
    open_heaps().erase(this);
    heap_.reset();
    give_back();
}

HeapBase& heap_of(nb::handle heap) {
    if (!nb::isinstance<HeapBase>(heap))
        raise_error("TypeError", "a Heap is wanted here, from Heap.create() or Heap.open(), not a %s",
                    Py_TYPE(heap.ptr())->tp_name);
    return instance_of<HeapBase>(heap.ptr());
}

std::string root_name(nb::handle name) {
    if (!PyUnicode_Check(name.ptr()))
        raise_error("TypeError", "a name in a heap is a str, not a %s", Py_TYPE(name.ptr())->tp_name);
    Py_ssize_t nbytes = 0;
    const char* text = PyUnicode_AsUTF8AndSize(name.ptr(), &nbytes);
    if (!text) throw nb::python_error();
    return {text, static_cast<size_t>(nbytes)};
}

Bytes::Bytes(PyObject* object) {
    if (PyBytes_CheckExact(object)) {
        view_ = {PyBytes_AS_STRING(object), static_cast<size_t>(PyBytes_GET_SIZE(object))};
        return;
    }
    if (PyUnicode_Check(object))
        raise_error("TypeError", "bytes are wanted here, not str: say text.encode()");
    if (!PyObject_CheckBuffer(object))
        raise_error("TypeError", "bytes are wanted here, or what has a buffer, not a %s",
                    Py_TYPE(object)->tp_name);
    if (PyObject_GetBuffer(object, &buffer_, PyBUF_SIMPLE) != 0) throw nb::python_error();
    held_ = true;
    view_ = {static_cast<const char*>(buffer_.buf), static_cast<size_t>(buffer_.len)};
}

void bind_heap(nb::module_& m) {
    using namespace nb::literals;
    nb::class_<HeapBase>(m, "HeapBase", "A crash-consistent heap in regions of this process.")
        .def(nb::init<nb::object, std::optional<uint64_t>, bool, nb::object>(), "region"_a,
             "heap_id"_a.none(), "durable"_a, "grow"_a.none())
        .def("close", &HeapBase::close)
        .def("extend", &HeapBase::extend, "region"_a.none())
        .def_prop_ro("is_open", &HeapBase::is_open)
        .def_prop_ro("durable", [](HeapBase& h) { return h.usable().medium().is_durable(); })
        .def_prop_ro("_regions", &HeapBase::regions)
        .def_prop_ro("_recovery", &recovery_of)
        .def_prop_ro("_roots", &roots_of)
        .def_prop_ro("address", [](HeapBase& h) { return h.usable().address(); })
        .def_prop_ro("nbytes", [](HeapBase& h) { return h.usable().nbytes(); })
        .def_prop_ro("free_bytes", [](HeapBase& h) { return h.usable().free_bytes(); })
        .def("__contains__", &contains, "name"_a.none())
        .def("_find_memory", &memory_named, "name"_a.none())
        .def("_make_memory", &make_memory_named, "name"_a.none(), "nbytes"_a)
        .def(
            "_remove", [](HeapBase& h, nb::handle name) { return remove(h.usable(), root_name(name)); },
            "name"_a.none());
}

}  // namespace bequest
