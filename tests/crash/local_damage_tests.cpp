// Damage in one place: what is said of it, what goes on beside it, and that it is not sealed over.
#include <cstring>

#include "map.hpp"
#include "record_chain.hpp"
#include "roles.hpp"
#include "tests.hpp"

namespace bequest::tests {

namespace {

constexpr uint64_t kRecords = 50;  // in several blocks

// What is said by whoever notices; nothing if nobody does.
template <class Body>
std::string said_of(Body body) {
    try {
        body();
    } catch (const CorruptHeap& corrupt) {
        return corrupt.what();
    }
    return "";
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// --- a Log -------------------------------------------------------------------------------------------

std::string record(uint64_t i) { return "record-" + std::to_string(i); }

RecordChain fresh_log(World& world) {
    world.clear();
    world.create();
    RecordChain log(world.heap(), "audit", ObjectKind::kLog);
    for (uint64_t i = 0; i < kRecords; i++) log.append(record(i));
    return log;
}

ChainRecord& header_of(const RecordChain& log, uint64_t index) {
    const auto data = RecordChain::Cursor(log, index).next();
    return reinterpret_cast<ChainRecord*>(const_cast<char*>(data->data()))[-1];
}

bool reads(const RecordChain& log, uint64_t index) {
    return RecordChain::Cursor(log, index).next() == record(index);
}

std::string damaged_data(World& world) {
    RecordChain log = fresh_log(world);
    constexpr uint64_t kDamaged = 3;
    reinterpret_cast<char*>(&header_of(log, kDamaged) + 1)[4] ^= 1;
    const std::string said = said_of([&] { RecordChain::Cursor(log, kDamaged).next(); });
    if (!has(said, "record 3 of the Log 'audit' is damaged") || !has(said, "from 4 on"))
        return "said: " + said;
    for (uint64_t i = 0; i < kRecords; i++)
        if (i != kDamaged && !reads(log, i)) return record(i) + " cannot be read";
    if (log.append("more") != kRecords) return "another index";
    if (log.drop_before(kDamaged) != kDamaged) return "those before it are not dropped";
    if (log.drop_before(kDamaged + 1) != 1) return "it cannot be dropped";
    if (!reads(log, kDamaged + 1) || log.size() != kRecords - kDamaged) return "it is not past";
    world.contents();
    return "";
}

std::string damaged_length(World& world) {
    RecordChain log = fresh_log(world);
    constexpr uint64_t kDamaged = 5;
    header_of(log, kDamaged).length ^= 4;
    const std::string said = said_of([&] { RecordChain::Cursor(log, kDamaged + 1); });
    const size_t place = said.find("read from ");
    if (!has(said, "record 5 of the Log 'audit' is damaged") || place == std::string::npos)
        return "said: " + said;
    const uint64_t next = std::stoull(said.substr(place + std::strlen("read from ")));
    if (next <= kDamaged + 1 || next >= kRecords) return "another place to go on: " + said;
    for (uint64_t i = 0; i < kRecords; i++)
        if ((i < kDamaged || i >= next) && !reads(log, i)) return record(i) + " cannot be read";
    if (log.append("more") != kRecords || log.drop_before(next) != next || !reads(log, next))
        return "it is not past";
    world.contents();
    return "";
}

// Where no other block follows, all can be dropped.
std::string damaged_length_in_the_last_block(World& world) {
    RecordChain log = fresh_log(world);
    header_of(log, kRecords - 2).length ^= 1u << 31;
    const std::string said = said_of([&] { RecordChain::Cursor(log, kRecords - 1); });
    if (!has(said, "read from 50 on")) return "said: " + said;
    if (log.drop_before(kRecords) != kRecords || log.size() != 0) return "not all are dropped";
    log.append(record(kRecords));
    if (!reads(log, kRecords)) return "what comes after it cannot be read";
    world.contents();
    return "";
}

std::string damaged_places(World& world) {
    const RecordChain log = fresh_log(world);
    auto& header = *reinterpret_cast<ChainHeader*>(log.address());
    header.first_block = header.last_block;
    header.first = ChainPlace{kRecords, 1}.packed();
    return has(said_of([&] { log.size(); }), "an end before its beginning") ? "" : "nobody notices";
}

// --- a Map -------------------------------------------------------------------------------------------

// Looked up, and nothing else: then nobody has looked at its neighbours before.
std::string lookups(World& world) {
    world.clear();
    world.create();
    constexpr int kKeys = 60;
    const auto key = [](int i) { return "key-" + std::to_string(i); };
    for (int i = 0; i < kKeys; i++) Map(world.heap(), "map").put(key(i), key(i * i));
    const std::vector<Role> roles = roles_at_rest(world);
    for (uint64_t bit = 0; bit < kHeapBytes * 8; bit++) {
        if (roles[bit / 8] != Role::kOwn) continue;
        unsigned char& byte = world.memory()[bit / 8];
        byte ^= static_cast<unsigned char>(1u << bit % 8);
        try {
            for (int i = 0; i < kKeys; i++)
                if (Map(world.heap(), "map").get(key(i)) != key(i * i))
                    return "byte " + std::to_string(bit / 8) + ": " + key(i) + " is not found";
        } catch (const CorruptHeap&) {
        }
        byte ^= static_cast<unsigned char>(1u << bit % 8);
    }
    return "";
}

// --- what is in use ----------------------------------------------------------------------------------

// Of a run that is in use already: with the next change of the same word the damage would be sound.
std::string damaged_bitmap(World& world) {
    world.clear();
    world.create();
    Heap& heap = world.heap();
    heap.begin();
    const uint64_t block = heap.alloc(40);
    heap.commit();
    Block found{};
    heap.for_each_block([&](const Block& one) { found = one.address == block ? one : found; });
    *found.word ^= found.bit;  // it is free, as it seems
    for (const bool is_freed : {true, false}) {
        const std::string said = said_of([&] {
            Transaction transaction(heap);
            if (is_freed)
                heap.free(block);
            else
                heap.alloc(40);
            transaction.commit();
        });
        if (!has(said, "in use")) return "said: " + said;
    }
    *found.word ^= found.bit;
    return "";
}

// A redo log is whole or was never committed, however much is known of its length.
std::string damaged_journal(World& world) {
    world.clear();
    world.create();
    uint64_t* cell = world.cells("cells");
    auto& header = *reinterpret_cast<HeapHeader*>(kArenaAddress + kHeapHeaderOffset);
    const Phase before{header.phase};
    Journal journal(world.heap());
    journal.set(cell[0], 9);
    journal.commit();
    header.phase = Phase::make(before.serial(), true).bits;
    header.hardened = Hardened::make(0, 0).bits;
    world.memory()[kLogOffset + sizeof(LogEntry)] ^= 1;
    return has(said_of([&] { world.open(); }), "not whole any more") ? "" : "nobody notices";
}

}  // namespace

std::vector<Test> local_damage_tests() {
    return {
        {"beside a damaged record a log goes on", damaged_data},
        {"beside a record of damaged length a log goes on", damaged_length},
        {"behind a record of damaged length in the last block a log goes on",
         damaged_length_in_the_last_block},
        {"a log that ends before it begins", damaged_places},
        {"no key is said to be missing for a flipped bit", lookups},
        {"a bitmap that is damaged in use is not sealed over", damaged_bitmap},
        {"a journal that was committed and is not whole", damaged_journal},
    };
}

}  // namespace bequest::tests
