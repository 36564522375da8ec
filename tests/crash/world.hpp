// A small heap at a fixed address, and an oracle that says what is in it.
#pragma once

#include <memory>
#include <string>

#include "heap.hpp"

namespace bequest::tests {

constexpr uint64_t kArenaAddress = 0x2000'4000'0000;
constexpr uint64_t kHeapBytes = 24 << 10;    // the first segment,
constexpr uint64_t kSupplyBytes = 20 << 10;  // and what it may grow by, right behind it
constexpr uint64_t kArenaBytes = kHeapBytes + 2 * kSupplyBytes;
constexpr uint64_t kHeapId = 0x6265'7175'6573'7401;

// Roots of this kind are plain memory, of which the first words count as they are.
constexpr uint64_t kCells = 200;
constexpr uint64_t kReference = 201;  // its first word is the address of another block
constexpr uint64_t cells_in(uint64_t nbytes) { return nbytes / 8 < 16 ? nbytes / 8 : 16; }

struct Contradiction : std::runtime_error {
    using std::runtime_error::runtime_error;
};

class World {
public:
    World();
    ~World();
    World(const World&) = delete;

    unsigned char* memory() const { return memory_; }
    uint64_t nbytes() const { return kArenaBytes; }
    Heap& heap() { return *heap_; }
    bool is_open() const { return heap_ != nullptr; }

    void clear(unsigned char filling = 0);  // no heap
    void create();
    void open();
    void close() { heap_.reset(); }

    bool may_grow = false;
    // What is in the heap, in words; "no heap" if none is open. Throws Contradiction if anything in it
    // contradicts anything else, memory that is allocated and that nobody refers to included: what the heap
    // itself should have noticed, it says itself (CorruptHeap).
    std::string contents();

    uint64_t* cells(std::string_view name, uint64_t count = 16);  // made, and zeroed, if they are not there
    void write(uint64_t* cell, uint64_t value);                   // as a user's program stores

private:
    HeapOptions options();

    unsigned char* memory_;
    std::unique_ptr<Heap> heap_;
};

}  // namespace bequest::tests
