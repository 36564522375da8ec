// The heap without Python: nanoseconds per operation, the least of several rounds. Prints JSON.
//
// Memory is touched before the clock runs: to fault fresh pages in is the kernel's time, and the warm pool's
// business.
#include <sys/mman.h>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>

#include "map.hpp"
#include "record_chain.hpp"

using namespace bequest;

namespace {

constexpr uint64_t kBytes = 1ull << 30, kEntries = 1'000'000, kAddress = 0x2000'0000'0000;
constexpr int kRounds = 5;

double nanoseconds(const std::function<void()>& body) {
    const auto started = std::chrono::steady_clock::now();
    body();
    return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - started).count();
}

void print(const char* name, double value, const char* end = ",") {
    std::printf("  \"%s\": %.1f%s\n", name, value, end);
}

void least(const char* name, uint64_t operations, const std::function<void()>& body) {
    double best = 1e30;
    for (int round = 0; round < kRounds; round++) best = std::min(best, nanoseconds(body));
    print(name, best / static_cast<double>(operations));
}

struct Key {
    char bytes[16];
    explicit Key(uint64_t i) {
        std::memset(bytes, 'k', sizeof bytes);
        i *= 0x9e3779b97f4a7c15;
        std::memcpy(bytes, &i, sizeof i);
    }
    std::string_view view() const { return {bytes, sizeof bytes}; }
};

uint64_t make_cells(Heap& heap) {
    Transaction transaction(heap);
    const uint64_t address = heap.alloc(1024);
    heap.set_root("cells", address, 100);
    transaction.commit();
    return address;
}

void transactions(Heap& heap, uint64_t* cell) {
    constexpr uint64_t kTimes = 200'000;
    least("transaction_of_3_writes_ns", kTimes, [&] {
        for (uint64_t i = 0; i < kTimes; i++) {
            Transaction transaction(heap);
            for (uint64_t j = 0; j < 3; j++) {
                heap.snapshot(cell + 16 * j, 8);
                heap.medium().store(cell[16 * j], i);
            }
            transaction.commit();
        }
    });
    least("journal_of_3_writes_ns", kTimes, [&] {
        for (uint64_t i = 0; i < kTimes; i++) {
            Journal journal(heap);
            for (uint64_t j = 0; j < 3; j++) journal.set(cell[16 * j], i);
            journal.commit();
        }
    });
    least("alloc_and_free_ns", kTimes, [&] {
        for (uint64_t i = 0; i < kTimes; i++) {
            uint64_t block;
            {
                Transaction transaction(heap);
                block = heap.alloc(100);
                transaction.commit();
            }
            Transaction transaction(heap);
            heap.free(block);
            transaction.commit();
        }
    });
}

void maps(Heap& heap) {
    Map map(heap, "map");
    const std::string value(100, 'v');
    print("map_put_new_ns", nanoseconds([&] {
                                for (uint64_t i = 0; i < kEntries; i++) map.put(Key(i).view(), value);
                            }) / kEntries);
    least("map_put_again_ns", kEntries, [&] {
        for (uint64_t i = 0; i < kEntries; i++) map.put(Key(i * 7919 % kEntries).view(), value);
    });
    uint64_t found = 0;
    least("map_get_ns", kEntries, [&] {
        for (uint64_t i = 0; i < kEntries; i++) found += map.get(Key(i * 7919 % kEntries).view())->size();
    });
    if (found != kRounds * kEntries * value.size()) std::printf("  \"wrong\": true,\n");
}

void logs(Heap& heap) {
    RecordChain log(heap, "log", ObjectKind::kLog);
    const std::string record(100, 'r');
    least("log_append_ns", kEntries, [&] {
        for (uint64_t i = 0; i < kEntries; i++) log.append(record);
        log.drop_before(log.end_index());
    });
}

}  // namespace

int main() {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
    void* place = mmap(reinterpret_cast<void*>(kAddress), kBytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (place == MAP_FAILED) return 1;
    madvise(place, kBytes, MADV_HUGEPAGE);  // as a region of this size has
    std::memset(place, 0, kBytes);
    auto heap = Heap::create({kAddress, kBytes}, 1);
    std::printf("{\n");
    auto* cell = reinterpret_cast<uint64_t*>(make_cells(*heap));
    transactions(*heap, cell);
    maps(*heap);
    logs(*heap);
    heap->begin();
    for (uint64_t i = 0; i < 100; i++) heap->snapshot(cell + i, 8);
    heap.reset();
    print("recovery_of_100_snapshots_ns", nanoseconds([&] { heap = Heap::open({kAddress, kBytes}); }));
    print("first_allocation_ns", nanoseconds([&] {
              Transaction transaction(*heap);
              heap->alloc(100);
          }),
          "");
    std::printf("}\n");
}
