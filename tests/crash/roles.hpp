// What each byte of a heap is for: told from the heap's layout, and not by the code that checks it.
#pragma once

#include <cstdint>
#include <vector>

#include "world.hpp"

namespace bequest::tests {

enum class Role : uint8_t {
    kNothing,  // free, or padding: whatever is there means nothing
    kOwn,      // the heap's: of these, each bit is covered by a check
    kUsers,    // a value, a number, text, rows, memory: no check covers these
};

// Of a heap at rest, a byte each.
std::vector<Role> roles_at_rest(World& world);
// Of one that was left in the middle of something: what decides how that ends, before anything is put back.
std::vector<Role> roles_of_recovery(World& world);

}  // namespace bequest::tests
