// The rack window without a kernel: keeps count of what is open, and maps nothing.
//
// It takes the place of native/address_space.cpp when these tests are linked, so that many processes can live
// in one, each with a window of its own, and a test can look at all of them at once. The real one is tested
// from Python, by tests/unit/test_table_properties.py and the integration tests.
#include "fake_address_space.hpp"

namespace bequest {

namespace tests {
const AddressSpace* opens_nothing = nullptr;
const AddressSpace* closes_nothing = nullptr;
std::map<const AddressSpace*, const Shared<uint32_t>*> page_tables;

namespace {
void look_at_page_table(const AddressSpace* space) {
    const auto table = page_tables.find(space);
    if (table != page_tables.end()) table->second->load();
}
}  // namespace
}  // namespace tests

AddressSpace::AddressSpace(Tenants* tenants) : tenants_(tenants), mappings_limit_(UINT64_MAX), owner_(0) {}
AddressSpace::~AddressSpace() = default;

bool AddressSpace::is_mapped(uint32_t, uint64_t, uint64_t) const { return true; }

void AddressSpace::map(uint32_t, uint64_t, uint64_t, const OpenedSlab&, uint64_t, uint64_t) {}

bool AddressSpace::is_open(uint64_t address, uint64_t nbytes) const {
    for (uint64_t page = address; page < address + nbytes; page += kPageBytes)
        if (open_.count(page) == 0) return false;
    return true;
}

bool AddressSpace::open(uint64_t address, uint64_t nbytes) {
    tests::look_at_page_table(this);
    if (tests::opens_nothing == this) throw TooManyMappings("a test");
    for (uint64_t page = address; page < address + nbytes; page += kPageBytes)
        open_[page] = page + kPageBytes;
    return true;
}

void AddressSpace::close(uint64_t address, uint64_t nbytes) {
    tests::look_at_page_table(this);
    if (tests::closes_nothing == this) throw TooManyMappings("a test");
    for (uint64_t page = address; page < address + nbytes; page += kPageBytes) {
        open_.erase(page);
        sealed_.erase(page);
    }
}

void AddressSpace::protect(uint64_t address, uint64_t nbytes) {
    tests::look_at_page_table(this);
    for (uint64_t page = address; page < address + nbytes; page += kPageBytes)
        if (open_.count(page) > 0) sealed_[page] = page + kPageBytes;
}

void AddressSpace::unprotect(uint64_t address, uint64_t nbytes) {
    tests::look_at_page_table(this);
    for (uint64_t page = address; page < address + nbytes; page += kPageBytes) sealed_.erase(page);
}

void AddressSpace::forget_everything() {
    open_.clear();
    sealed_.clear();
}

Believed AddressSpace::believed(uint64_t address) const {
    const uint64_t page = address / kPageBytes * kPageBytes;
    uint64_t start = page, end = page;
    while (open_.count(start - kPageBytes) > 0) start -= kPageBytes;
    while (open_.count(end) > 0) end += kPageBytes;
    return {open_.count(page) > 0 ? Belief::kOpen : Belief::kClosed, start, end};
}

void AddressSpace::lose(uint64_t address, uint64_t nbytes) { close(address, nbytes); }

void AddressSpace::forget(uint64_t address, uint64_t nbytes) { close(address, nbytes); }

void AddressSpace::forget_lost(uint64_t, uint64_t) {}

void AddressSpace::retire_scratch() {}

void AddressSpace::forget_all_but(const std::vector<Range>& kept) {
    const auto is_dropped = [&](const auto& page) {
        for (const Range& range : kept)
            if (page.first >= range.start && page.first < range.end) return false;
        return true;
    };
    std::erase_if(open_, is_dropped);
    std::erase_if(sealed_, is_dropped);
}

}  // namespace bequest
