// Long random use, beside a model in plain memory; and a heap filled to its last byte.
#include <algorithm>
#include <deque>
#include <map>
#include <random>

#include "map.hpp"
#include "record_chain.hpp"
#include "tests.hpp"

namespace bequest::tests {

namespace {

using Model = std::map<std::string, std::string>;

std::string compare(Map& map, const Model& model) {
    if (map.size() != model.size()) return "the map has another size";
    for (const auto& [key, value] : model)
        if (map.get(key) != std::string_view(value)) return "another value under " + key;
    uint64_t seen = 0;
    for (Map::Cursor cursor(map); cursor.next();) seen++;
    return seen == model.size() ? "" : "iteration sees another number of entries";
}

std::string use_map(World& world, uint64_t seed) {
    std::mt19937_64 random(seed);
    world.clear(0x5a);
    world.create();
    Model model;
    for (int round = 0; round < 4000; round++) {
        const std::string key = "k" + std::to_string(random() % 90),
                          value(random() % 60, 'a' + char(random() % 26));
        Map map(world.heap(), "map");
        try {
            if (random() % 3 != 0) {
                if (map.put(key, value) == model.contains(key))
                    return "put is wrong about whether the key is new";
                model[key] = value;
            } else if (map.erase(key) != (model.erase(key) > 0)) {
                return "erase is wrong about whether there was such a key";
            }
        } catch (const HeapFull&) {
        }
        if (random() % 500 == 0) map.clear(), model.clear();
        if (random() % 40 == 0) world.close(), world.open();
        if (random() % 10 == 0) {
            world.contents();
            Map again(world.heap(), "map");
            if (const std::string wrong = compare(again, model); !wrong.empty()) return wrong;
        }
    }
    return "";
}

std::string use_queue(World& world, uint64_t seed) {
    std::mt19937_64 random(seed);
    world.clear(0x5a);
    world.create();
    std::deque<std::string> model;
    for (int round = 0; round < 6000; round++) {
        RecordChain queue(world.heap(), "queue", ObjectKind::kQueue);
        if (random() % 2 == 0 && model.size() < 30) {
            model.push_back(std::string(random() % 150, 'q') + std::to_string(round));
            queue.append(model.back());
        } else if (!model.empty()) {
            const auto first = RecordChain::Cursor(queue, queue.first_index()).next();
            if (!first || *first != model.front()) return "another record comes first";
            queue.drop_before(queue.first_index() + 1);
            model.pop_front();
        }
        if (queue.size() != model.size()) return "the queue has another size";
        if (random() % 40 == 0) world.close(), world.open();
        if (random() % 20 == 0) world.contents();
    }
    return "";
}

// As many as fit, twice: nothing is lost in between, and neighbours are not touched.
std::string fill_up(World& world, uint64_t nbytes) {
    world.clear(0x5a);
    world.create();
    uint64_t counts[2] = {};
    for (uint64_t& count : counts) {
        Heap& heap = world.heap();
        std::vector<uint64_t> blocks;
        try {
            for (;;) {
                Transaction transaction(heap);
                blocks.push_back(heap.alloc(nbytes));
                world.write(reinterpret_cast<uint64_t*>(blocks.back()), blocks.size());
                transaction.commit();
            }
        } catch (const HeapFull&) {
        }
        count = blocks.size();
        if (heap.free_bytes() >= nbytes + 2048) return "it is called full with room to spare";
        world.close();
        world.open();
        for (uint64_t i = 0; i < blocks.size(); i++)
            if (*reinterpret_cast<uint64_t*>(blocks[i]) != i + 1) return "blocks overlap";
        Transaction transaction(world.heap());
        for (uint64_t block : blocks) world.heap().free(block);
        transaction.commit();
    }
    if (counts[0] != counts[1]) return "the second time it holds another number of them";
    return counts[0] * nbytes * 4 < kHeapBytes ? "it holds far too little" : "";
}

template <class Body>
Test repeated(const char* name, Body body) {
    return {name, [body](World& world) {
                world.may_grow = false;
                for (uint64_t seed = 1; seed <= 5; seed++)
                    if (const std::string wrong = body(world, seed); !wrong.empty())
                        return "seed " + std::to_string(seed) + ": " + wrong;
                return std::string();
            }};
}

}  // namespace

std::vector<Test> model_tests() {
    return {
        repeated("a map does what a std::map does", use_map),
        repeated("a queue does what a std::deque does", use_queue),
        {"a heap is filled to the last byte and emptied again",
         [](World& world) {
             world.may_grow = false;
             for (const uint64_t nbytes : {16, 24, 100, 500, 1000, 5000})
                 if (const std::string wrong = fill_up(world, nbytes); !wrong.empty())
                     return "blocks of " + std::to_string(nbytes) + " bytes: " + wrong;
             return std::string();
         }},
        {"many changes in one transaction",
         [](World& world) {
             world.clear(0x5a);
             world.create();
             Map map(world.heap(), "map");
             Transaction transaction(world.heap());
             for (int i = 0; i < 100; i++) map.put("k" + std::to_string(i % 40), std::to_string(i));
             transaction.commit();
             world.contents();
             return std::string(map.size() == 40 && map.get("k3") == "83" ? "" : "another outcome");
         }},
    };
}

}  // namespace bequest::tests
