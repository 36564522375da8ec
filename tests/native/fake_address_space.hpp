// How a test makes a fake address space refuse, as the kernel does when it has no more mappings.
#pragma once

#include "address_space.hpp"

namespace bequest::tests {

extern const AddressSpace* opens_nothing;
extern const AddressSpace* closes_nothing;

}  // namespace bequest::tests
