// CRC-32C (Castagnoli; RFC 3720, appendix B.4), by the processor's own instruction where it has one.
//
// `crc32c(data, nbytes)` is the usual one; the second argument of the others carries it on over several
// pieces.
#pragma once

#include <cstdint>

namespace bequest {

uint32_t crc32c_by_table(uint32_t crc, const void* data, uint64_t nbytes);  // of any processor

#if defined(__x86_64__)
extern const bool has_crc_instruction;

inline uint32_t crc32c_word(uint32_t crc, uint64_t word) {
    uint64_t wide = crc;
    if (!has_crc_instruction) return crc32c_by_table(crc, &word, sizeof word);
    asm("crc32q %1, %0" : "+r"(wide) : "rm"(word));
    return static_cast<uint32_t>(wide);
}
#else
inline uint32_t crc32c_word(uint32_t crc, uint64_t word) { return crc32c_by_table(crc, &word, sizeof word); }
#endif

uint32_t crc32c_more(uint32_t crc, const void* data, uint64_t nbytes);  // neither inverted first nor last
inline uint32_t crc32c(const void* data, uint64_t nbytes) { return ~crc32c_more(~0u, data, nbytes); }

}  // namespace bequest
