// Long random use, beside a model in plain memory; and a heap filled to its last byte.
#include <algorithm>
#include <deque>
#include <map>
#include <optional>
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

// Puts and erases many keys in one transaction, which may fail. Those that stay are put again at most.
void disturb(Heap& heap, std::mt19937_64& random, const std::map<std::string, int>& staying) {
    Map map(heap, "map");
    Transaction transaction(heap);
    try {
        for (uint64_t i = random() % 40; i > 0; i--) {
            const std::string key = std::to_string(random() % 200);
            if (staying.contains(key) || random() % 2)
                map.put(key, "");
            else
                map.erase(key);
        }
        if (random() % 2) transaction.commit();
    } catch (const HeapFull&) {
    }
}

// What a scan promises: each key that is there throughout is shown once, whatever happens between its steps.
// The map grows and shrinks, also by transactions that fail, and its heap is closed and opened.
std::string scan_map(World& world, uint64_t seed) {
    std::mt19937_64 random(seed);
    world.clear(0x5a);
    world.create();
    std::map<std::string, int> staying;  // and how often they were shown
    for (uint64_t i = random() % 60; i > 0; i--) staying[std::to_string(random() % 200)] = 0;
    for (const auto& [key, times] : staying) Map(world.heap(), "map").put(key, "");
    uint64_t position = 0;
    std::optional<Transaction> failing;  // over several steps
    do {
        if (failing && random() % 4 == 0)
            failing.reset();
        else if (!failing && random() % 4 == 0)
            failing.emplace(world.heap());
        disturb(world.heap(), random, staying);
        if (!failing && random() % 8 == 0) world.close(), world.open();
        position = Map(world.heap(), "map").scan(position, 1 + random() % 9, [&](const MapEntry& entry) {
            if (const auto key = staying.find(std::string(entry.key())); key != staying.end()) key->second++;
        });
    } while (position != 0);
    for (const auto& [key, times] : staying)
        if (times != 1) return key + " is shown " + std::to_string(times) + " times";
    return "";
}

// The list of roots and what is noted of it, through transactions that fail at one level or both.
std::string use_roots(World& world, uint64_t seed) {
    std::mt19937_64 random(seed);
    world.clear(0x5a);
    world.create();
    std::map<std::string, uint64_t> model;
    const auto change = [&](std::map<std::string, uint64_t>& names) {
        const std::string name = "r" + std::to_string(random() % 30);
        if (random() % 3 == 0) {
            if (world.heap().remove_root(name) != (names.erase(name) > 0)) throw std::logic_error(name);
        } else {
            names[name] = random();
            world.heap().set_root(name, names[name], kCells);
        }
    };
    for (int round = 0; round < 400; round++) {
        std::map<std::string, uint64_t> outer = model;
        {
            Transaction transaction(world.heap());
            for (uint64_t i = random() % 4; i > 0; i--) {
                std::map<std::string, uint64_t> inner = outer;
                Transaction nested(world.heap());
                for (uint64_t k = random() % 4; k > 0; k--) change(inner);
                if (random() % 2) continue;
                nested.commit();
                outer = inner;
            }
            if (random() % 2) transaction.commit(), model = outer;
        }
        if (random() % 10 == 0) world.close(), world.open();
        std::map<std::string, uint64_t> found;
        for (const Root& root : world.heap().roots()) found[root.name] = root.address;
        if (found != model) return "other roots than there should be";
        for (int i = 0; i < 30; i++) {
            const auto root = world.heap().find_root("r" + std::to_string(i));
            const auto wanted = model.find("r" + std::to_string(i));
            if (root.has_value() != (wanted != model.end()) || (root && root->address != wanted->second))
                return "r" + std::to_string(i) + " leads elsewhere";
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
        while (!blocks.empty()) {  // no more at once than the log can say without more room
            Transaction transaction(world.heap());
            for (int i = 0; i < 20 && !blocks.empty(); i++) {
                world.heap().free(blocks.back());
                blocks.pop_back();
            }
            transaction.commit();
        }
    }
    if (counts[0] != counts[1]) return "the second time it holds another number of them";
    return counts[0] * nbytes * 4 < kHeapBytes ? "it holds far too little" : "";
}

template <class Body>
Test repeated(const char* name, Body body, uint64_t seeds = 5) {
    return {name, [body, seeds](World& world) {
                world.may_grow = false;
                for (uint64_t seed = 1; seed <= seeds; seed++)
                    if (const std::string wrong = body(world, seed); !wrong.empty())
                        return "seed " + std::to_string(seed) + ": " + wrong;
                return std::string();
            }};
}

}  // namespace

std::vector<Test> model_tests() {
    return {
        repeated("a map does what a std::map does", use_map),
        repeated("a scan of a map shows what stays once", scan_map, 300),
        repeated("roots are what a std::map says", use_roots),
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
