// Scenarios of the Array: rows added where there is room and where there is none, taken away, and changed.
#include "array.hpp"
#include "removal.hpp"
#include "scenarios.hpp"

namespace bequest::tests {

namespace {

constexpr uint64_t kRowBytes = 6;

Array array(World& world, uint64_t rows = 0) {
    return Array(world.heap(), "array", "six bytes", kRowBytes, rows);
}

auto with(uint64_t rows) {
    return [rows](World& world) {
        world.create();
        Array fresh = array(world, rows);
        for (uint64_t row = 0; row < rows; row++)
            fresh.write(row * kRowBytes, std::string(kRowBytes, static_cast<char>(row + 1)).data(),
                        kRowBytes);
    };
}

auto append(uint64_t rows, char filling) {
    return [=](World& world) { array(world).append(std::string(rows * kRowBytes, filling).data(), rows); };
}
auto resize(uint64_t rows) {
    return [=](World& world) { array(world).resize(rows); };
}
auto write(uint64_t offset, std::string bytes) {
    return [=](World& world) { array(world).write(offset, bytes.data(), bytes.size()); };
}

// As a user's program changes what it has a view of.
void change(World& world, uint64_t offset, const std::string& bytes) {
    array(world).snapshot(offset, bytes.size());
    world.heap().medium().copy(array(world).data() + offset, bytes.data(), bytes.size());
}

// What is added after rows were taken away must not lie on them, for they may come back.
void shrink_and_grow(World& world) {
    resize(3)(world);
    append(2, 'x')(world);
    change(world, 9, "changed");
    resize(4)(world);
    append(30, 'y')(world);
    write(6, "more")(world);
    change(world, 40, "the last");
}

}  // namespace

std::vector<Scenario> array_scenarios() {
    return {
        {"array: made, empty and with rows",
         [](World& world) { world.create(); },
         {[](World& world) { array(world); },
          [](World& world) { Array(world.heap(), "other", "words", sizeof(uint64_t), 5); }}},
        {"array: rows are added", with(0), {append(1, 'a'), append(2, 'b'), append(1, 'c'), append(20, 'd')}},
        {"array: longer and shorter by count",
         with(3),
         {resize(5), resize(2), append(1, 'a'), resize(20), resize(18), resize(1), resize(0), resize(1)}},
        {"array: bytes are changed, within a word and across words",
         with(5),
         {write(0, "abcd"), write(8, "12345678"), write(3, "0123456789"), write(29, "z"), write(30, "")}},
        {"array: several changes in one transaction", with(6), {[](World& world) {
             Transaction transaction(world.heap());
             shrink_and_grow(world);
             transaction.commit();
         }}},
        {"array: a transaction that is aborted, and one that follows",
         with(6),
         {[](World& world) {
              Transaction transaction(world.heap());
              shrink_and_grow(world);
          },
          append(1, 'k')}},
        {"array: removed", with(3), {[](World& world) { remove(world.heap(), "array"); }}},
    };
}

}  // namespace bequest::tests
