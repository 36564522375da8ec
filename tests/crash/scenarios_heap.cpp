// Scenarios of the heap itself: making it, roots, the three ways to change something, allocation, growth.
#include <array>

#include "scenarios.hpp"

namespace bequest::tests {

namespace {

using Blocks = std::vector<uint64_t>;

// A directory of blocks, so that what is allocated is referred to: the user's part in every test of
// allocation.
void make_heap(World& world) {
    world.create();
    world.cells("a");
}

void set(World& world, uint64_t* cell, uint64_t value) {
    world.heap().snapshot(cell, sizeof *cell);
    world.write(cell, value);
}

uint64_t new_cells(World& world, const char* name, uint64_t nbytes) {
    Heap& heap = world.heap();
    const uint64_t address = heap.alloc(nbytes);
    for (uint64_t i = 0; i < cells_in(heap.nbytes_of(address)); i++)
        world.write(reinterpret_cast<uint64_t*>(address) + i, i == 0 ? nbytes + 1 : 0);
    heap.set_root(name, address, kCells);
    return address;
}

void drop_cells(World& world, const char* name) {
    world.heap().free(world.heap().find_root(name)->address);
    world.heap().remove_root(name);
}

// In a transaction of its own.
template <class Body>
auto in_transaction(Body body) {
    return [body](World& world) {
        Transaction transaction(world.heap());
        body(world);
        transaction.commit();
    };
}

void three_writes(World& world) {
    uint64_t* cell = world.cells("a");
    for (uint64_t i = 0; i < 3; i++) set(world, cell + 5 * i, 100 + i);
}

void failing_inside(World& world) {
    uint64_t* cell = world.cells("a");
    set(world, cell, 1);
    try {
        Transaction inner(world.heap());
        set(world, cell, 2);
        set(world, cell + 1, 3);
        world.heap().alloc(32);
        world.heap().free(reinterpret_cast<uint64_t>(world.cells("b")));
        throw HeapMisuse("as a user's code might");
    } catch (const HeapMisuse&) {
    }
    set(world, cell + 2, 4);
}

void much_in_one(World& world) {  // more than the log holds: it goes on in free chunks
    uint64_t* cell = world.cells("a", 16);
    for (uint64_t round = 0; round < 3; round++)
        for (uint64_t i = 0; i < 16; i++) set(world, cell + i, round * 100 + i);
}

std::vector<Scenario> making() {
    return {
        {"a heap is made where there was nothing", [](World& world) { world.clear(); }, {[](World& world) {
             world.create();
         }}},
        {"a heap is made where another had been", make_heap, {[](World& world) { world.create(); }}, true},
        {"a heap is made in memory full of rubbish", [](World&) {}, {[](World& world) { world.create(); }}},
        {"roots are set, replaced and removed",
         [](World& world) { world.create(); },
         {[](World& world) { world.cells("first"); }, [](World& world) { world.cells("second"); },
          in_transaction([](World& world) {
              world.heap().free(world.heap().find_root("first")->address);
              new_cells(world, "first", 48);
          }),
          in_transaction([](World& world) { drop_cells(world, "second"); })}},
    };
}

std::vector<Scenario> transactions() {
    return {
        {"a transaction of three writes, and one more",
         make_heap,
         {in_transaction(three_writes),
          in_transaction([](World& world) { set(world, world.cells("a"), 7); })}},
        {"a transaction that is aborted, and one more",
         make_heap,
         {[](World& world) {
              Transaction transaction(world.heap());
              three_writes(world);
              world.heap().alloc(40);
          },
          in_transaction([](World& world) { set(world, world.cells("a") + 1, 7); })}},
        {"a transaction in a transaction", make_heap, {in_transaction([](World& world) {
             set(world, world.cells("a"), 1);
             Transaction inner(world.heap());
             set(world, world.cells("a"), 2);
             set(world, world.cells("a") + 1, 3);
             inner.commit();
             set(world, world.cells("a") + 1, 4);
         })}},
        {"a transaction in which another one fails",
         [](World& world) {
             make_heap(world);
             world.cells("b", 4);
         },
         {in_transaction(failing_inside)}},
        {"a transaction that outgrows its log", make_heap, {in_transaction(much_in_one)}},
        {"a transaction that outgrows its log is aborted", make_heap, {[](World& world) {
             Transaction transaction(world.heap());
             much_in_one(world);
         }}},
        {"words are set together", make_heap, {in_transaction([](World& world) {
             uint64_t* cell = world.cells("a");
             world.heap().set({{cell, 1}, {cell + 8, 2}});
             world.heap().set({{cell, 3}, {cell + 9, 4}});
         })}},
        {"a snapshot of bytes that are no words", make_heap, {in_transaction([](World& world) {
             auto* bytes = reinterpret_cast<unsigned char*>(world.cells("a"));
             world.heap().snapshot(bytes + 3, 19);
             world.heap().medium().copy(bytes + 3, "nineteen bytes here", 19);
         })}},
    };
}

std::vector<Scenario> journals() {
    return {
        {"a journal, and another",
         make_heap,
         {[](World& world) {
              uint64_t* cell = world.cells("a");
              Journal journal(world.heap());
              journal.set(cell[0], 1);
              journal.set(cell[9], 2);
              journal.write(reinterpret_cast<char*>(cell) + 20, "eleven more", 11);
              journal.commit();
          },
          [](World& world) {
              Journal journal(world.heap());
              journal.set(world.cells("a")[1], 3);
              journal.commit();
          }}},
        {"a journal that allocates and frees",
         [](World& world) {
             make_heap(world);
             world.cells("b", 4);
         },
         {[](World& world) {
             Heap& heap = world.heap();
             const Root old = *heap.find_root("b");
             auto* record = reinterpret_cast<RootRecord*>(old.record);
             Journal journal(heap);
             const uint64_t fresh = journal.alloc(sizeof *record + 1);  // the same root again
             heap.medium().copy(reinterpret_cast<void*>(fresh), record, sizeof *record + 1);
             journal.free(old.record);
             auto& link = *reinterpret_cast<uint64_t*>(kArenaAddress + kHeapHeaderOffset +
                                                       offsetof(HeapHeader, roots));
             journal.set(link, Reference::make(fresh).bits);
             journal.set(*reinterpret_cast<uint64_t*>(old.address), 5);
             journal.commit();
         }}},
        {"a journal within a transaction, and a journal that is given up",
         make_heap,
         {in_transaction([](World& world) {
              set(world, world.cells("a"), 1);
              Journal journal(world.heap());
              journal.set(world.cells("a")[0], 2);
              journal.set(world.cells("a")[1], 3);
              journal.commit();
          }),
          [](World& world) {
              Journal journal(world.heap());
              journal.set(world.cells("a")[4], 3);
              journal.alloc(20);
          }}},
        {"one word is published",
         make_heap,
         {[](World& world) { world.heap().publish(world.cells("a")[2], 17); },
          in_transaction([](World& world) { world.heap().publish(world.cells("a")[2], 18); })}},
    };
}

std::vector<Scenario> allocations() {
    return {
        {"units of several classes",
         make_heap,
         {in_transaction([](World& world) {
              new_cells(world, "b", 16);
              new_cells(world, "c", 200);
          }),
          in_transaction([](World& world) { drop_cells(world, "b"); }),
          in_transaction([](World& world) { new_cells(world, "b", 16); })}},
        {"whole chunks",
         make_heap,
         {in_transaction([](World& world) { new_cells(world, "b", 1500); }), in_transaction([](World& world) {
              drop_cells(world, "b");
              new_cells(world, "c", 700);
          }),
          in_transaction([](World& world) { drop_cells(world, "c"); })}},
        {"what is allocated and freed again in one transaction", make_heap, {in_transaction([](World& world) {
             const uint64_t block = world.heap().alloc(64);
             world.write(reinterpret_cast<uint64_t*>(block), 1);
             world.heap().free(block);
             set(world, world.cells("a"), 1);
         })}},
        {"an empty run becomes chunks again when there is no room",
         [](World& world) {
             make_heap(world);
             for (const char* name : {"b", "c", "d", "e", "f"}) {  // "f" is in a second run
                 Transaction transaction(world.heap());
                 new_cells(world, name, 448);
                 transaction.commit();
             }
             Transaction transaction(world.heap());
             new_cells(world, "g", 14 << 10);  // all chunks that are left
             for (const char* name : {"b", "c", "d", "e"}) drop_cells(world, name);
             transaction.commit();
         },
         {in_transaction([](World& world) { new_cells(world, "b", 2 << 10); })}},
        {"a heap grows by a segment",
         [](World& world) {
             make_heap(world);
             world.may_grow = true;
         },
         {in_transaction([](World& world) {
              set(world, world.cells("a"), 1);
              new_cells(world, "b", 19 << 10);
          }),
          in_transaction([](World& world) { drop_cells(world, "b"); })}},
        {"a heap is given a segment",
         make_heap,
         {[](World& world) { world.heap().extend({kArenaAddress + world.heap().nbytes(), kSupplyBytes}); },
          in_transaction([](World& world) { new_cells(world, "b", 19 << 10); })}},
        {"a heap grows behind the last snapshot",  // nothing waits between its growing and the commit's log
                                                   // entries
         [](World& world) {
             make_heap(world);
             world.may_grow = true;
         },
         {in_transaction([](World& world) {
             Heap& heap = world.heap();
             const uint64_t pair = heap.alloc(16);
             heap.set_root("p", pair, kReference);
             const uint64_t large = heap.alloc(19 << 10);
             world.write(reinterpret_cast<uint64_t*>(large), 7);
             world.write(reinterpret_cast<uint64_t*>(pair), large);
         })}},
    };
}

}  // namespace

std::vector<Scenario> heap_scenarios() {
    std::vector<Scenario> all;
    for (const auto& some : {making(), transactions(), journals(), allocations()})
        all.insert(all.end(), some.begin(), some.end());
    return all;
}

}  // namespace bequest::tests
