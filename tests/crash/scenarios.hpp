// Every mutating operation of the heap and of its objects, each as a scenario of its own.
#pragma once

#include <vector>

#include "explorer.hpp"

namespace bequest::tests {

std::vector<Scenario> heap_scenarios();
std::vector<Scenario> map_scenarios();
std::vector<Scenario> chain_scenarios();
std::vector<Scenario> struct_scenarios();
std::vector<Scenario> array_scenarios();

}  // namespace bequest::tests
