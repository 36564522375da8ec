// How a test makes a fake address space refuse, as the kernel does when it has no more mappings.
#pragma once

#include <atomic>

#include "address_space.hpp"

namespace bequest::tests {

extern const AddressSpace* opens_nothing;
extern const AddressSpace* closes_nothing;
extern std::atomic<bool> closes_from_outside;  // the next time: the process believes what it believed before
extern std::atomic<const AddressSpace*> last_opened;

// Set for those whose pages another may close from outside: looked at whenever they open or close any, so
// that the explorer knows that the order matters.
extern std::map<const AddressSpace*, const Shared<uint32_t>*> page_tables;

}  // namespace bequest::tests
