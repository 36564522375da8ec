// A heap as Python holds it: with the regions that it lies in, and a buffer of each, which keeps them where
// they are.
#pragma once

#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "../heap/array.hpp"
#include "../heap/map.hpp"
#include "../heap/record_chain.hpp"
#include "../heap/structure.hpp"
#include "python.hpp"

namespace bequest {

class HeapBase {
public:
    HeapBase(nb::object region, std::optional<uint64_t> heap_id, bool durable, nb::object grow);
    ~HeapBase();
    HeapBase(const HeapBase&) = delete;

    // Raises what has become of the memory, if it is ours no more; HeapMisuse if the heap is closed, or if
    // another thread is in the middle of a transaction.
    Heap& usable() const;
    nb::list regions() const { return regions_; }
    bool is_open() const { return heap_ != nullptr; }
    void close();
    void extend(const nb::object& region);
    bool has_its_memory() const;                   // all of it is still this process's
    bool lies_in(const HeapMemory& memory) const;  // with any part of it
    uint64_t begin();                              // the number of the level
    std::unique_ptr<Journal> begin_journal();
    // This level and what has begun within it, if it has not ended yet. Raises what has become of the memory.
    void undo(uint64_t level);
    nb::object view(uint64_t address, uint64_t nbytes) const;  // memory of the heap, as a memoryview

private:
    HeapMemory borrow(const nb::object& object);
    bool find(const HeapMemory& memory);
    std::optional<HeapMemory> grow(uint64_t least, uint64_t wished);
    void keep_together() const;
    void give_back();
    void require_owned() const;

    nb::list regions_;
    nb::object grow_;
    std::vector<std::unique_ptr<Py_buffer>> views_;
    std::unique_ptr<Heap> heap_;
    std::thread::id in_transaction_;  // or in the middle of an operation, while it grows
    bool is_growing_ = false;
};

// Bytes, or anything with a buffer, for as long as this lives.
class Bytes {
public:
    explicit Bytes(PyObject* object);
    ~Bytes() {
        if (held_) PyBuffer_Release(&buffer_);
    }
    Bytes(const Bytes&) = delete;
    std::string_view view() const { return view_; }

private:
    Py_buffer buffer_;
    bool held_ = false;
    std::string_view view_;
};

// An object in a heap, as Python holds it. Every use asks the heap first: whether it is open and its memory
// ours, and whether the object is still in it.
template <class Object>
class InHeap {
public:
    InHeap(nb::handle heap, std::string name, Object object)
        : heap_(nb::borrow(heap)), name_(std::move(name)), object_(std::move(object)) {
        Heap& native = base().usable();
        seen_ = native.roots_generation();
        header_ = native.at<ObjectHeader>(object_.address());
    }
    const nb::object& heap() const { return heap_; }
    const std::string& name() const { return name_; }
    nb::object transaction() const { return heap_.attr("transaction")(); }
    Object& usable() {
        Heap& native = base().usable();
        if (native.roots_generation() != seen_) look_again(native);
        return object_;
    }

private:
    HeapBase& base() const { return *nb::inst_ptr<HeapBase>(heap_); }
    void look_again(Heap& native) {
        const auto root = native.find_root(name_);
        if (!root || root->address != object_.address() ||
            std::memcmp(&native.at<ObjectHeader>(root->address), &header_, sizeof header_) != 0)
            raise<HeapMisuse>(
                "the %s '%s' is no longer in its heap: it was removed, or the transaction that made it "
                "failed",
                name_of(header_.kind), name_.c_str());
        seen_ = native.roots_generation();
    }

    nb::object heap_;
    std::string name_;
    Object object_;
    ObjectHeader header_;
    uint64_t seen_;
};

// What a slot of type `Base` was called with; not so if a subclass has forgotten to call __init__.
template <class Base>
Base& instance_of(PyObject* self) {
    if (!nb::inst_ready(self)) raise<HeapMisuse>("this object was not made: call super().__init__ first");
    return *nb::inst_ptr<Base>(self);
}

// For repr, which is asked for of what was never made, too.
template <class Base>
const std::string& name_of_made(nb::handle_t<Base> self) {
    return instance_of<Base>(self.ptr()).name();
}

// What users pass is looked at here, so that they are told in words what is wrong with it.
HeapBase& heap_of(nb::handle heap);
std::string root_name(nb::handle name);

// For slots, which are called by C: nothing may pass through them but the sign of an error.
template <class Result, class Body>
Result guarded(Result failure, const Body& body) {
    try {
        return body();
    } catch (...) {
        set_python_error(std::current_exception());
        return failure;
    }
}

inline nb::bytes to_python(std::string_view bytes) { return nb::bytes(bytes.data(), bytes.size()); }

void bind_heap(nb::module_& m);
void bind_transaction(nb::module_& m);
void bind_objects(nb::module_& m);
void bind_struct(nb::module_& m);
void bind_array(nb::module_& m);

}  // namespace bequest
