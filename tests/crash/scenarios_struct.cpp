// Scenarios of the Struct: each kind of field, changed alone and within a transaction.
#include "map.hpp"
#include "removal.hpp"
#include "scenarios.hpp"
#include "structure.hpp"

namespace bequest::tests {

namespace {

const char* const kLayout = "count int\nlabel str\nlast float\nraw bytes\n";
constexpr uint64_t kCount = 0, kLabel = 1, kLast = 2, kRaw = 3;

Struct state(World& world) {
    return Struct(world.heap(), "state", StructLayout(kLayout), [](Struct& fresh) {
        fresh.set_word(kCount, 7);
        fresh.set_bytes(kLabel, "default");
    });
}

void make(World& world) {
    world.create();
    state(world);
}

auto set_word(uint64_t field, uint64_t value) {
    return [=](World& world) { state(world).set_word(field, value); };
}
auto set_bytes(uint64_t field, std::string value) {
    return [=](World& world) { state(world).set_bytes(field, value); };
}

void change_all(World& world) {
    Struct fields = state(world);
    fields.set_word(kCount, 8);
    fields.set_bytes(kLabel, "another");
    fields.set_word(kCount, 9);
    fields.set_bytes(kLabel, "a third one, which is longer than the others were");
    fields.set_bytes(kRaw, "raw");
    fields.set_word(kLast, 1ull << 62);
}

}  // namespace

std::vector<Scenario> struct_scenarios() {
    return {
        {"struct: made, with defaults", [](World& world) { world.create(); }, {[](World& world) {
             state(world);
         }}},
        {"struct: a number is one word",
         make,
         {set_word(kCount, 8), set_word(kLast, 1), set_word(kCount, 0)}},
        {"struct: text of another length, and of none",
         make,
         {set_bytes(kLabel, std::string(100, 'l')), set_bytes(kRaw, "raw"), set_bytes(kLabel, ""),
          set_bytes(kLabel, "again")}},
        {"struct: several fields in one transaction, with a map",
         [](World& world) {
             make(world);
             Map(world.heap(), "map");
         },
         {[](World& world) {
             Transaction transaction(world.heap());
             change_all(world);
             Map(world.heap(), "map").put("key", "value");
             transaction.commit();
         }}},
        {"struct: a transaction that is aborted, and one that follows",
         make,
         {[](World& world) {
              Transaction transaction(world.heap());
              change_all(world);
          },
          set_bytes(kLabel, "kept"), set_word(kCount, 1)}},
        {"struct: removed", make, {[](World& world) { remove(world.heap(), "state"); }}},
    };
}

}  // namespace bequest::tests
