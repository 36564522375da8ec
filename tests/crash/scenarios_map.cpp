// Scenarios of the Map: each way in which it changes, alone and within a transaction.
#include "hash.hpp"
#include "map.hpp"
#include "removal.hpp"
#include "scenarios.hpp"

namespace bequest::tests {

namespace {

std::string key(uint64_t i) { return "key-" + std::to_string(i); }

// The first keys, from a given one on, that share a bucket of a map that has not grown.
std::vector<std::string> neighbours(World& world, uint64_t count) {
    const auto root = world.heap().find_root("m");
    const uint64_t seed = world.heap().at<MapHeader>(root->address).object.seed;
    std::vector<std::string> keys;
    for (uint64_t i = 0; keys.size() < count; i++)
        if (hash_of(key(i), seed) % (2 * kFirstBuckets) < 2 * kFirstBuckets &&
            hash_of(key(i), seed) % kFirstBuckets == 0)
            keys.push_back(key(i));
    return keys;
}

auto with(uint64_t entries) {
    return [entries](World& world) {
        world.create();
        Map map(world.heap(), "m");
        for (uint64_t i = 0; i < entries; i++) map.put("old-" + std::to_string(i), "v");
    };
}

auto with_neighbours(uint64_t entries) {
    return [entries](World& world) {
        world.create();
        Map map(world.heap(), "m");
        for (const std::string& one : neighbours(world, entries)) map.put(one, "v");
    };
}

auto put(std::string key, std::string value) {
    return [key, value](World& world) { Map(world.heap(), "m").put(key, value); };
}
auto erase(std::string key) {
    return [key](World& world) { Map(world.heap(), "m").erase(key); };
}
auto put_neighbour(uint64_t which) {
    return [which](World& world) { Map(world.heap(), "m").put(neighbours(world, which + 1)[which], "new"); };
}
auto erase_neighbour(uint64_t which) {
    return [which](World& world) { Map(world.heap(), "m").erase(neighbours(world, which + 1)[which]); };
}

}  // namespace

std::vector<Scenario> map_scenarios() {
    const uint64_t before_split = kFirstBuckets * kEntriesPerBucket;
    return {
        {"map: made", [](World& world) { world.create(); }, {[](World& world) { Map(world.heap(), "m"); }}},
        {"map: put, put another value, erase",
         with(2),
         {put("k", "value"), put("k", "other"), put("k", std::string(100, 'x')), erase("k"), erase("k")}},
        {"map: a bucket gets a second line, and a third",
         with_neighbours(kSlotsPerLine),
         {put_neighbour(kSlotsPerLine), put_neighbour(kSlotsPerLine + 1)}},
        {"map: a second line is given up",
         with_neighbours(kSlotsPerLine + 2),
         {erase_neighbour(3), erase_neighbour(kSlotsPerLine)}},
        {"map: a bucket is split", with(before_split), {put("k", "value"), put("l", "value")}},
        {"map: a bucket of three lines is split",
         [](World& world) {
             with_neighbours(2 * kSlotsPerLine + 4)(world);
             Map map(world.heap(), "m");
             for (uint64_t i = map.size(); i < before_split; i++) map.put("old-" + std::to_string(i), "v");
         },
         {put("k", "value")}},
        {"map: buckets double", with(2 * before_split - 1), {put("k", "value"), put("l", "value")}},
        {"map: clear", with(6), {[](World& world) { Map(world.heap(), "m").clear(); }, put("k", "value")}},
        {"map: several operations in one transaction",
         with(3),
         {[](World& world) {
              Transaction transaction(world.heap());
              Map map(world.heap(), "m"), other(world.heap(), "n");
              map.put("k", "value");
              other.put("k", "other");
              map.erase("old-1");
              map.put("k", "value again");
              transaction.commit();
          },
          [](World& world) {
              Transaction transaction(world.heap());
              Map(world.heap(), "m").put("gone", "value");
              Map(world.heap(), "n").erase("k");
          }}},
        {"map: removed", with(3), {[](World& world) { remove(world.heap(), "m"); }}},
    };
}

}  // namespace bequest::tests
