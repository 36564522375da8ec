#include "checksum.hpp"

#include <array>
#include <cstring>

namespace bequest {

namespace {

constexpr uint32_t kPolynomial = 0x82f63b78;  // reflected

constexpr std::array<uint32_t, 256> make_table() {
    std::array<uint32_t, 256> table{};
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++) crc = crc & 1 ? crc >> 1 ^ kPolynomial : crc >> 1;
        table[byte] = crc;
    }
    return table;
}
constexpr std::array<uint32_t, 256> kTable = make_table();

}  // namespace

uint32_t crc32c_by_table(uint32_t crc, const void* data, uint64_t nbytes) {
    const auto* bytes = static_cast<const unsigned char*>(data);
    for (uint64_t i = 0; i < nbytes; i++) crc = crc >> 8 ^ kTable[(crc ^ bytes[i]) & 255];
    return crc;
}

#if defined(__x86_64__)

namespace {
bool find_crc_instruction() {
    unsigned a = 1, b = 0, c = 0, d = 0;
    asm("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return c & 1u << 20;  // SSE 4.2
}
}  // namespace

const bool has_crc_instruction = find_crc_instruction();

#endif

uint32_t crc32c_more(uint32_t crc, const void* data, uint64_t nbytes) {
    const auto* bytes = static_cast<const unsigned char*>(data);
    for (; nbytes >= 8; bytes += 8, nbytes -= 8) {
        uint64_t word;
        std::memcpy(&word, bytes, sizeof word);
        crc = crc32c_word(crc, word);
    }
    return crc32c_by_table(crc, bytes, nbytes);
}

}  // namespace bequest
