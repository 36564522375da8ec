// The mutation check: what the explorer would notice.
//
// Every store, copy, flush and fence in native/heap that the scenarios reach is left out in turn, and is made
// to come too early or too late; each time some scenario must fail. Sites are found by running the scenarios,
// so a new one is checked from the day that it is written. Each mutant runs in a child process, for it may
// crash or never end, which counts as noticed. What changes nothing that a crash could show is listed with
// the reason in `harmless`, and must indeed not be noticed.
#pragma once

#include "explorer.hpp"

namespace bequest::tests {

// Prints each mutant and what killed it. How many live that should not, or die that are said to be harmless.
int check_mutants(World& world, const std::vector<Scenario>& scenarios, const char* filter);

}  // namespace bequest::tests
