// How a heap lies in memory: the agreement between whoever wrote it and whoever inherits it.
//
// A heap is state that outlives its process. Whoever owns its regions, by grant, by theft or after a crash,
// opens it and finds it consistent: what was under way when the last owner stopped is undone or completed,
// and nothing else has to be looked at. Pointers are plain addresses, for the regions lie at the same
// addresses in everybody who may own them. One process owns it at a time, and one thread changes it.
//
// A heap is one or more *segments*, each one region of the same owner:
//
//   first segment    [ SegmentHeader | HeapHeader | log | chunk table | chunks … ]
//   others           [ SegmentHeader |                    chunk table | chunks … ]
//
// **The commit point** of every transaction is one word, `HeapHeader::phase`. It holds a serial number, and
// each entry of the log bears the serial of the transaction that wrote it: so to raise the number makes all
// entries void at once, and a log is never cleared. An entry counts if it has the present serial and its
// checksum is right, and the log ends at the first that does not count; torn entries are thus known for what
// they are.
//
//   undo     An entry says what was there before. It is durable before the place is written. Commit: what was
//            written is made durable, then the serial is raised. Recovery puts the old contents back, last
//            entry first, and raises the serial.
//   redo     An entry says what shall be there. When all are durable, the phase word is marked `redo`, which
//            commits; then they are carried out, and the serial is raised. Recovery, if it finds the mark,
//            carries them out again.
//   shadow   What is new is built in memory that nobody refers to, and made durable; then one word is
//   changed.
//
// Recovery reads the log as far as it is valid and nothing else: it takes as long as what was under way was
// long, whatever the size of the heap. It may itself be cut off at any instant, and is begun again. Every
// opening raises the serial, also if it finds nothing: entries of a batch may be torn in any order, and a
// whole one behind a torn one must not count in the next transaction.
//
// **The allocator** has no state of its own to recover. A segment's chunks are partitioned into records, and
// the chunk table has at each record's first chunk one word that says what it is and how many chunks it has;
// the table's other words mean nothing, and a record is found by walking from the front.
//
//   free     nobody's. Neighbours count as one. To cut one in two, or to make one of two, means nothing, so
//   it
//            is done at once, whether a transaction is under way or not: the tail's word first, where
//            nobody can come upon it, then the head's, which is one store.
//   block    one allocation, of whole chunks.
//   run      small allocations of one class (size): first a bitmap, a bit for each unit in words with check
//   bits, then the units. To
//   make
//            a run of a free record is one store (its bitmap has been written before); to make a free record
//            of an empty run is another. Both mean nothing, too.
//
// So an allocation or a release changes exactly one word, of the table or of a bitmap, and that word is
// changed by the transaction that it belongs to, when it commits. Until then an allocation is a reservation
// in this process's own memory, and so vanishes by itself with an abort or a death; what is released stays as
// it is until then. Further log space, when a transaction outgrows its own, is free chunks that this process
// keeps to itself for the time being, found through an entry of the log, so that it can never leak. The index
// of free space is made by walking the tables at the first allocation after opening.
//
// **Named roots** are records in a list; each has its own checksum. From a root everything in use is reached.
//
// **Growing.** A segment is formatted aside; to store its place in the directory means nothing until
// `segments_used` is raised, one word. That, too, is done at once and not undone by a transaction that ends
// badly.
//
// **What is checked.** Immutable headers, log entries and root records have checksums; what changes in one
// store has check bits in the same word: the phase, chunk words, bitmaps and counts twelve of them, addresses
// four. Addresses are checked before they are followed, and every walk is bounded. So a heap that something
// else has written into never leads a reader out of it, and what the heap itself has written is recognised
// for damaged when it is used (CorruptHeap): any single bit. What the users' own bytes were is the page
// checksums' business, but for the records of a Log and a Queue, which have checksums.
//
// An entry of the log that is not whole may be one that was being written when the process ended, or one that
// was whole and is damaged: without it, what it says would not be put back. So a word beside the phase,
// `hardened`, says how many entries of the present transaction are durable for certain. It is stored behind
// the fence that made them so and before the places are written, and nobody waits for it: an older number
// says less, and nothing wrong.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bequest {

constexpr uint64_t kHeapMagic = 0x0a50'4145'4851'4542;  // "BEQHEAP\n"
constexpr uint32_t kHeapVersion = 1;                    // any change of what is below wants another
constexpr uint64_t kHeapBytesMin = 16 << 10;
constexpr uint64_t kHeapBytesMax = 1ull << 40;  // of one segment
constexpr uint32_t kSegmentsMax = 64;
constexpr uint32_t kRootNameBytesMax = 255;

// --- checks that fit into a word ------------------------------------------------------------

// Twelve bits of check for the 52 below them: any single bit that flips shows, and of other damage all but
// one in 4096.
constexpr uint64_t kCheckedBits = 52;
constexpr uint64_t kCheckedMask = (1ull << kCheckedBits) - 1;
constexpr uint64_t folded(uint64_t value) {
    return (value ^ value >> 12 ^ value >> 24 ^ value >> 36 ^ value >> 48 ^ 0x5a5) & 0xfff;
}
constexpr uint64_t checked(uint64_t value) { return value | folded(value) << kCheckedBits; }
constexpr bool is_sound(uint64_t word) { return checked(word & kCheckedMask) == word; }

// An address that the heap follows, which is a multiple of 16, with four bits of check for the other sixty:
// any single bit that flips shows. 0 leads nowhere.
struct Reference {  // [ tag: 16 | address: 44 | check: 4 ]
    uint64_t bits = 0;
    static constexpr uint64_t kAddressMask = (1ull << 48) - 16;
    static constexpr uint64_t folded(uint64_t bits) {
        bits ^= bits >> 32;
        bits ^= bits >> 16;
        bits ^= bits >> 8;
        return (bits ^ bits >> 4) & 15;
    }
    static constexpr Reference make(uint64_t address, uint64_t tag = 0) {
        const uint64_t said = tag << 48 | address;
        return {address == 0 ? 0 : said | (folded(said) ^ 0xa)};
    }
    constexpr bool sound() const { return bits == 0 || folded(bits) == 0xa; }
    constexpr uint64_t address() const { return bits & kAddressMask; }
    constexpr uint64_t tag() const { return bits >> 48; }
};

struct Phase {  // [ check | serial | redo ]
    uint64_t bits = 0;
    static constexpr Phase make(uint64_t serial, bool redo) {
        return {checked((serial << 1 | (redo ? 1 : 0)) & kCheckedMask)};
    }
    constexpr bool sound() const { return is_sound(bits); }
    constexpr uint64_t serial() const { return (bits & kCheckedMask) >> 1; }
    constexpr bool redo() const { return bits & 1; }
};

struct Hardened {  // [ check | serial: 26 | entries: 26 ]
    uint64_t bits = 0;
    static constexpr unsigned kBits = 26;
    static constexpr uint64_t kMask = (1ull << kBits) - 1;
    static constexpr Hardened make(uint64_t serial, uint64_t entries) {
        return {checked((serial & kMask) << kBits | (entries < kMask ? entries : kMask))};
    }
    constexpr bool sound() const { return is_sound(bits); }
    constexpr bool is_of(uint64_t serial) const { return (bits & kCheckedMask) >> kBits == (serial & kMask); }
    constexpr uint64_t entries() const { return bits & kMask; }
};

// --- chunks -----------------------------------------------------------------------------------

enum class ChunkKind : uint32_t { kNone = 0, kFree = 1, kBlock = 2, kRun = 3 };

struct ChunkWord {  // [ check | class: 6 | kind: 2 | chunks: 44 ]
    uint64_t bits = 0;
    static constexpr ChunkWord make(ChunkKind kind, uint64_t chunks, uint32_t size_class = 0) {
        return {checked(uint64_t{size_class & 63} << 46 | static_cast<uint64_t>(kind) << 44 | chunks)};
    }
    constexpr bool sound() const { return is_sound(bits) && kind() != ChunkKind::kNone && chunks() > 0; }
    constexpr ChunkKind kind() const { return static_cast<ChunkKind>(bits >> 44 & 3); }
    constexpr uint64_t chunks() const { return bits & ((1ull << 44) - 1); }
    constexpr uint32_t size_class() const { return bits >> 46 & 63; }
};

// Sizes of units: by 16 up to 128, from there four in each doubling, up to 8 KiB.
constexpr uint64_t kUnitAlign = 16;
constexpr uint32_t kClassCount = 32;
constexpr uint64_t kUnitBytesMax = 8192;
constexpr uint64_t kRunBytesMax = 64 << 10;
constexpr uint64_t kRunUnitsMin = 4;

constexpr uint64_t unit_bytes_of(uint32_t size_class) {
    if (size_class < 8) return (size_class + 1) * kUnitAlign;
    const uint32_t doubling = (size_class - 8) / 4, quarter = (size_class - 8) % 4 + 1;
    return (128ull << doubling) + quarter * (32ull << doubling);
}
constexpr uint32_t class_of(uint64_t nbytes) {  // the smallest that holds them
    if (nbytes <= 128) return nbytes == 0 ? 0 : static_cast<uint32_t>((nbytes - 1) / kUnitAlign);
    const auto doubling = static_cast<uint32_t>(63 - __builtin_clzll(nbytes - 1)) - 7;
    return 8 + doubling * 4 + static_cast<uint32_t>((nbytes - 1 - (128ull << doubling)) >> (5 + doubling));
}
static_assert(unit_bytes_of(kClassCount - 1) == kUnitBytesMax);
static_assert(class_of(128) == 7 && class_of(129) == 8 && class_of(161) == 9 &&
              class_of(8192) == kClassCount - 1);

struct RunShape {  // a run's units, and where the first of them begins
    static constexpr uint64_t kUnitsPerWord = kCheckedBits;
    uint64_t unit_bytes, units, first;
    constexpr uint64_t words() const { return words_for(units); }
    static constexpr uint64_t words_for(uint64_t units) {
        return (units + kUnitsPerWord - 1) / kUnitsPerWord;
    }
    static constexpr RunShape make(uint64_t run_bytes, uint64_t unit_bytes) {
        const uint64_t words = words_for(run_bytes / unit_bytes);
        const uint64_t align = unit_bytes % 64 == 0 ? 64 : unit_bytes % 32 == 0 ? 32 : kUnitAlign;
        const uint64_t first = (words * 8 + align - 1) / align * align;  // a unit of whole lines begins one
        return {unit_bytes, run_bytes > first ? (run_bytes - first) / unit_bytes : 0, first};
    }
};
constexpr uint64_t kRunWordsMax = RunShape::make(kRunBytesMax, kUnitAlign).words();

// --- the log --------------------------------------------------------------------------------------

enum class EntryKind : uint64_t {
    kContinued = 0,  // the log goes on at `address`, in an area of as many bytes as its data says
    kUndo = 1,
    kRedo = 2,
    kRedoEnd = 3,  // there is no more to carry out
};

struct LogEntry {  // then its data, up to a multiple of 8 bytes
    uint64_t tag;  // serial << 2 | EntryKind
    uint64_t address;
    uint32_t nbytes;
    uint32_t crc;  // of all above and the data
};
constexpr uint64_t kEntryBytesMax = 1ull << 30;  // of data; what is longer takes several entries

// --- headers ----------------------------------------------------------------------------------

struct SegmentHeader {  // never changes
    uint64_t magic;     // stored last
    uint32_t version;
    uint32_t index;    // in the directory
    uint64_t heap_id;  // the same in all of its segments
    uint64_t address;  // where this lies: a copy elsewhere is no heap
    uint64_t nbytes;
    uint64_t log_offset, log_bytes;  // of the first segment
    uint64_t table_offset, chunks_offset;
    uint64_t chunk_count;
    uint32_t chunk_bits;  // log2 of a chunk's bytes
    uint32_t reserved[9];
    uint64_t crc;  // of all above
};
static_assert(sizeof(SegmentHeader) == 128);

struct SegmentPlace {
    uint64_t address, nbytes;
};

struct HeapHeader {
    uint64_t phase;
    uint64_t hardened;       // of the log's entries
    uint64_t reserved[6];    // a line of their own: it is written with every transaction
    uint64_t segments_used;  // checked; the first one included
    uint64_t roots;          // a Reference: the first RootRecord
    uint64_t root_count;     // checked
    uint64_t reserved_too[5];
    SegmentPlace segments[kSegmentsMax];
};

struct RootRecord {
    uint64_t next;     // a Reference
    uint64_t address;  // of the object
    uint64_t kind;     // what it is: an ObjectKind, or the user's own number
    uint32_t name_bytes;
    uint32_t crc;  // of address, kind, name_bytes and the name, which follows
};

constexpr uint64_t kHeapHeaderOffset = sizeof(SegmentHeader);
constexpr uint64_t kLogOffset = 2048;
constexpr uint64_t kLogBytesMin = 1024, kLogBytesMax = 256 << 10;
static_assert(kHeapHeaderOffset + sizeof(HeapHeader) <= kLogOffset);
static_assert(offsetof(HeapHeader, segments_used) % 64 == 0);

constexpr uint64_t rounded_up(uint64_t value, uint64_t step) { return (value + step - 1) / step * step; }

}  // namespace bequest
