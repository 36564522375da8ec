// Tests of the heap that are no scenarios: a name, and a function that says what is wrong.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "world.hpp"

namespace bequest::tests {

struct Test {
    const char* name;
    std::function<std::string(World&)> run;
};
std::vector<Test> damage_tests();
std::vector<Test> local_damage_tests();
std::vector<Test> model_tests();

}  // namespace bequest::tests
