// A hash of bytes, for the Map: 64 good bits, quick for short keys, different in each heap.
//
// Folded multiplications, as in wyhash. It is part of the format: entries keep their hash.
#pragma once

#include <cstdint>
#include <cstring>
#include <string_view>

namespace bequest {

inline uint64_t folded_product(uint64_t a, uint64_t b) {
    const auto product = static_cast<unsigned __int128>(a) * b;
    return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

inline uint64_t hash_of(std::string_view key, uint64_t seed) {
    constexpr uint64_t kOdd[] = {0xa0761d6478bd642f, 0xe7037ed1a0b428db, 0x8ebc6af09c88c6e3};
    uint64_t state = seed ^ kOdd[0];
    const char* at = key.data();
    uint64_t left = key.size(), words[2];
    for (; left > 16; at += 16, left -= 16) {
        std::memcpy(words, at, 16);
        state = folded_product(words[0] ^ kOdd[1], words[1] ^ state);
    }
    words[0] = words[1] = 0;
    std::memcpy(words, at, left);
    return folded_product(kOdd[2] ^ key.size(), folded_product(words[0] ^ kOdd[1], words[1] ^ state));
}

// Its bits the other way round.
inline uint64_t reversed(uint64_t bits) {
    constexpr uint64_t kOther[] = {0x5555555555555555, 0x3333333333333333, 0x0f0f0f0f0f0f0f0f};
    for (unsigned i = 0, width = 1; i < 3; i++, width *= 2)
        bits = (bits >> width & kOther[i]) | (bits & kOther[i]) << width;
    return __builtin_bswap64(bits);
}

}  // namespace bequest
