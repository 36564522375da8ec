// Scenarios of Log and Queue: adding and dropping, within a block and across blocks.
#include "map.hpp"
#include "record_chain.hpp"
#include "removal.hpp"
#include "scenarios.hpp"

namespace bequest::tests {

namespace {

RecordChain log_of(World& world) { return RecordChain(world.heap(), "log", ObjectKind::kLog); }

std::string record(uint64_t i) { return "record-" + std::to_string(i) + std::string(i % 5 * 3, '.'); }

auto with(uint64_t records) {
    return [records](World& world) {
        world.create();
        RecordChain log = log_of(world);
        for (uint64_t i = 0; i < records; i++) log.append(record(i));
    };
}

auto append(std::vector<std::string> records) {
    return [records](World& world) {
        const std::vector<std::string_view> views(records.begin(), records.end());
        log_of(world).append(views);
    };
}
auto drop_before(uint64_t index) {
    return [index](World& world) { log_of(world).drop_before(index); };
}

}  // namespace

std::vector<Scenario> chain_scenarios() {
    const std::string long_one(200, 'x');
    return {
        {"log: made", [](World& world) { world.create(); }, {[](World& world) { log_of(world); }}},
        {"log: append", with(0), {append({"a"}), append({"second"}), append({""})}},
        {"log: append a batch", with(1), {append({"a", "bb", "the third of them"}), append({})}},
        {"log: a batch that goes on in another block",
         with(0),
         {append({long_one, long_one, long_one, "last"}), append({"more"})}},
        {"log: a record larger than a block", with(1), {append({std::string(900, 'y')}), append({"more"})}},
        {"log: drop from the front, within a block",
         with(4),
         {drop_before(1), drop_before(3), drop_before(3)}},
        {"log: drop from the front, across blocks",
         with(50),
         {drop_before(20), drop_before(1000), append({"more"})}},
        {"log: drop all", with(3), {drop_before(3), append({"more"})}},
        {"log: in a transaction, and in one that is aborted",
         with(2),
         {[](World& world) {
              Transaction transaction(world.heap());
              log_of(world).append("one");
              log_of(world).append(std::string(600, 'z'));
              log_of(world).drop_before(1);
              transaction.commit();
          },
          [](World& world) {
              Transaction transaction(world.heap());
              log_of(world).append("gone");
              log_of(world).drop_before(3);
          },
          append({"kept"})}},
        {"log: removed", with(50), {[](World& world) { remove(world.heap(), "log"); }}},
        {"queue: a message is taken, and what it leads to is noted, at once",
         [](World& world) {
             world.create();
             RecordChain queue(world.heap(), "queue", ObjectKind::kQueue);
             queue.append("one");
             queue.append("two");
             Map map(world.heap(), "done");
         },
         {[](World& world) {
             Transaction transaction(world.heap());
             RecordChain queue(world.heap(), "queue", ObjectKind::kQueue);
             const std::string taken(*RecordChain::Cursor(queue, 0).next());
             queue.drop_before(queue.first_index() + 1);
             Map(world.heap(), "done").put(taken, "done");
             queue.append("three");
             transaction.commit();
         }}},
    };
}

}  // namespace bequest::tests
