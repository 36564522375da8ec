// bequest._core.HeapBase.
#include "heap_handle.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <set>

#include "../heap/removal.hpp"

namespace bequest {

namespace {

std::set<uint64_t>& open_heaps() {  // in this process: two handles would not know of each other's changes
    static std::set<uint64_t> addresses;
    return addresses;
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

}  // namespace

HeapBase::HeapBase(nb::object region, std::optional<uint64_t> heap_id, bool durable, nb::object grow)
    : grow_(std::move(grow)) {
    try {
        const HeapMemory memory = borrow(region);
        if (open_heaps().contains(memory.address))
            raise<HeapMisuse>("the heap at %#lx is open in this process already: use that one, or close it",
                              memory.address);
        HeapOptions options{durable ? Medium::Backing::kFile : Medium::Backing::kRam,
                            [this](uint64_t least, uint64_t wished) { return this->grow(least, wished); },
                            [this](const HeapMemory& other) { return find(other); }};
        heap_ = heap_id ? Heap::create(memory, *heap_id, std::move(options))
                        : Heap::open(memory, std::move(options));
        open_heaps().insert(memory.address);
    } catch (...) {
        give_back();
        throw;
    }
}

HeapBase::~HeapBase() {
    if (heap_) open_heaps().erase(heap_->address());
    heap_.reset();
    give_back();
}

void HeapBase::give_back() {
    for (const auto& view : views_) PyBuffer_Release(view.get());
    views_.clear();
}

HeapMemory HeapBase::borrow(const nb::object& region) {
    auto view = std::make_unique<Py_buffer>();
    if (PyObject_GetBuffer(region.ptr(), view.get(), PyBUF_WRITABLE) != 0) throw nb::python_error();
    const HeapMemory memory{reinterpret_cast<uint64_t>(view->buf), static_cast<uint64_t>(view->len)};
    views_.push_back(std::move(view));
    regions_.append(region);
    return memory;
}

// A segment of this heap among what its owner has: the region that begins there.
bool HeapBase::find(const HeapMemory& memory) {
    nb::object first = regions_[0];
    const RegionBase& region = *nb::inst_ptr<RegionBase>(first);
    const Holding* holding = region.holding->member()->holding_at(memory.address);
    if (!holding || holding->address() != memory.address || holding->nbytes() < memory.nbytes) return false;
    nb::object handle = region_of(*holding);
    if (handle.is_none()) return false;
    borrow(handle);
    return true;
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
    return borrow(region);
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
    open_heaps().erase(heap_->address());
    heap_.reset();
    give_back();
}

Bytes::Bytes(PyObject* object) {
    if (PyBytes_CheckExact(object)) {
        view_ = {PyBytes_AS_STRING(object), static_cast<size_t>(PyBytes_GET_SIZE(object))};
        return;
    }
    if (PyUnicode_Check(object))
        raise_error("TypeError", "bytes are wanted here, not str: say text.encode()");
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
        .def_prop_ro("is_open", &HeapBase::is_open)
        .def_prop_ro("durable", [](HeapBase& h) { return h.usable().medium().is_durable(); })
        .def_prop_ro("_regions", &HeapBase::regions)
        .def_prop_ro("_recovery", &recovery_of)
        .def_prop_ro("_roots", &roots_of)
        .def_prop_ro("address", [](HeapBase& h) { return h.usable().address(); })
        .def_prop_ro("nbytes", [](HeapBase& h) { return h.usable().nbytes(); })
        .def_prop_ro("free_bytes", [](HeapBase& h) { return h.usable().free_bytes(); })
        .def(
            "_alloc", [](HeapBase& h, uint64_t nbytes) { return h.usable().alloc(nbytes); }, "nbytes"_a)
        .def(
            "_free", [](HeapBase& h, uint64_t address) { h.usable().free(address); }, "address"_a)
        .def(
            "_view",
            [](HeapBase& h, uint64_t address, uint64_t nbytes) {
                h.usable();
                return h.view(address, nbytes);
            },
            "address"_a, "nbytes"_a)
        .def(
            "_nbytes_of", [](HeapBase& h, uint64_t address) { return h.usable().nbytes_of(address); },
            "address"_a)
        .def(
            "_find_root",
            [](HeapBase& h, const std::string& name) -> nb::object {
                const auto root = h.usable().find_root(name);
                if (!root) return nb::none();
                return nb::make_tuple(root->address, name_of(root->kind));
            },
            "name"_a)
        .def(
            "_set_root",
            [](HeapBase& h, const std::string& name, uint64_t address) {
                h.usable().set_root(name, address, static_cast<uint64_t>(ObjectKind::kMemory));
            },
            "name"_a, "address"_a)
        .def(
            "_remove", [](HeapBase& h, const std::string& name) { return remove(h.usable(), name); },
            "name"_a);
}

}  // namespace bequest
