// The rack window without a kernel: keeps count of what is open, and maps nothing.
//
// It takes the place of native/address_space.cpp when these tests are linked, so that many processes can live
// in one, each with a window of its own, and a test can look at all of them at once. The real one is tested
// from Python, by tests/unit/test_table_properties.py and the integration tests.
#include "fake_address_space.hpp"

#include <algorithm>

namespace bequest {

namespace tests {
const AddressSpace* opens_nothing = nullptr;
const AddressSpace* closes_nothing = nullptr;
std::atomic<bool> closes_from_outside{false};
std::atomic<const AddressSpace*> last_opened{nullptr};
std::map<const AddressSpace*, const Shared<uint32_t>*> page_tables;

namespace {
void look_at_page_table(const AddressSpace* space) {
    const auto table = page_tables.find(space);
    if (table != page_tables.end()) table->second->load();
}

void note_opened(const AddressSpace* space) {
    last_opened = space;
    BEQUEST_STEP("pages opened");
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
    for (auto& [start, read] : read_)
        if (start >= address && start < address + nbytes) read.is_kept = true;
    for (uint64_t page = address; page < address + nbytes; page += kPageBytes)
        open_[page] = page + kPageBytes;
    tests::note_opened(this);
    return true;
}

void AddressSpace::close(uint64_t address, uint64_t nbytes) {
    const bool from_outside = tests::closes_from_outside.exchange(false);
    tests::look_at_page_table(this);
    if (tests::closes_nothing == this) throw TooManyMappings("a test");
    for (uint64_t page = address; page < address + nbytes; page += kPageBytes) {
        const auto reading = std::find_if(read_.begin(), read_.end(), [&](const auto& read) {
            return page >= read.first && page < read.second.end;
        });
        if (reading != read_.end()) {
            reading->second.is_kept = false;
            continue;
        }
        open_.erase(page);
        if (!from_outside) sealed_.erase(page);
    }
}

void AddressSpace::protect(uint64_t address, uint64_t nbytes) {
    tests::look_at_page_table(this);
    for (uint64_t page = address; page < address + nbytes; page += kPageBytes)
        if (open_.count(page) > 0) sealed_[page] = page + kPageBytes;
}

void AddressSpace::unprotect(uint64_t address, uint64_t nbytes) {
    tests::look_at_page_table(this);
    for (uint64_t page = address; page < address + nbytes; page += kPageBytes)
        if (sealed_.erase(page) > 0)
            open_[page] = page + kPageBytes;  // as the kernel does, whoever has closed it
    tests::note_opened(this);
}

bool AddressSpace::open_to_read(uint64_t address, uint64_t nbytes) {
    tests::look_at_page_table(this);
    if (const auto known = read_.find(address); known != read_.end()) return ++known->second.readers, true;
    read_[address] = {address + nbytes, 1, is_open(address, nbytes)};
    for (uint64_t page = address; page < address + nbytes; page += kPageBytes)
        open_[page] = sealed_[page] = page + kPageBytes;
    return true;
}

bool AddressSpace::is_only_read(uint64_t, uint64_t) const { return false; }

void AddressSpace::end_reading(uint64_t address) {
    const auto known = read_.find(address);
    if (known == read_.end() || --known->second.readers > 0) return;
    const Reading reading = known->second;
    read_.erase(known);
    if (!reading.is_kept) close(address, reading.end - address);
}

void AddressSpace::forget_everything() {
    open_.clear();
    sealed_.clear();
    read_.clear();
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
