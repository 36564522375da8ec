// A scenario: a world, the operations that meet in it, and who dies. All of them are in one table, by name.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "world.hpp"

namespace bequest::tests {

struct Scenario {
    const char* name;
    std::function<std::vector<Operation>(World&)> build;
    // Each of these operations, by its place, is killed before each of its writes; another operation says
    // what the Rack MMU does about it, with `after` naming the victim. Empty: nobody dies.
    std::vector<size_t> victims = {};
};

std::vector<Scenario> grant_scenarios();
std::vector<Scenario> inbox_scenarios();
std::vector<Scenario> free_scenarios();
std::vector<Scenario> death_scenarios();
std::vector<Scenario> steward_scenarios();
std::vector<Scenario> sleep_scenarios();
std::vector<Scenario> recovery_scenarios();
std::vector<Scenario> theft_scenarios();
std::vector<Scenario> seal_scenarios();
std::vector<Scenario> frozen_scenarios();

// Tests of another kind: a name and a function that returns what is wrong.
struct Test {
    const char* name;
    std::function<std::string()> run;
};
std::vector<Test> explorer_tests();
std::vector<Test> checker_tests();
std::vector<Test> hostile_tests();
std::vector<Test> stress_tests();
std::vector<Test> fault_tests();
std::vector<Test> liveness_tests();

}  // namespace bequest::tests
