#include "scenario.hpp"
namespace bequest::tests {
std::vector<Test> stress_tests() { return {}; }
}  // namespace bequest::tests
