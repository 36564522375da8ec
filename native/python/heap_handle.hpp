// A heap as Python holds it: with the regions that it lies in, and a buffer of each, which keeps them where
// they are.
#pragma once

#include <memory>
#include <thread>
#include <vector>

#include "../heap/map.hpp"
#include "../heap/record_chain.hpp"
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
    void begin();
    void give_up() { heap_->give_up(); }

private:
    HeapMemory borrow(const nb::object& region);
    bool find(const HeapMemory& memory);
    std::optional<HeapMemory> grow(uint64_t least, uint64_t wished);
    void give_back();

    nb::list regions_;
    nb::object grow_;
    std::vector<std::unique_ptr<Py_buffer>> views_;
    std::unique_ptr<Heap> heap_;
    std::thread::id in_transaction_;
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

inline nb::bytes to_python(std::string_view bytes) { return nb::bytes(bytes.data(), bytes.size()); }

void bind_heap(nb::module_& m);
void bind_objects(nb::module_& m);

}  // namespace bequest
