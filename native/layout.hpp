// The address plan, the limits, and the layout of the shared V2P table, in one place.
//
// Everything here is an agreement between processes that were not started together, so nothing
// may change without a new kTableVersion. All offsets are in bytes, all addresses are virtual.
#pragma once

#include <cstddef>
#include <cstdint>

#include "shared.hpp"

namespace bequest {

// --- pages ---------------------------------------------------------------------------------
constexpr uint64_t kPageBytes = 4096;
constexpr uint64_t kHugePageBytes = 2ull << 20;
constexpr uint64_t kPagesPerHugePage = kHugePageBytes / kPageBytes;
constexpr uint64_t kLargeRegionBytes = 1ull << 20;  // from here on a region gets 2 MiB pages

// --- the rack window: top bits of an offset name the process that allocated (paper, 3.1) ----
constexpr uint64_t kWindowBase = 0x2000'0000'0000;
constexpr unsigned kWindowBits = 45;
constexpr unsigned kProcessSpaceBits = 36;  // 64 GiB of addresses for each process
constexpr uint64_t kWindowBytes = 1ull << kWindowBits;
constexpr uint64_t kProcessSpaceBytes = 1ull << kProcessSpaceBits;

// --- ids: a process, a mailbox (an inbox that several processes read), or the Rack MMU -------
constexpr uint32_t kNobody = 0;
constexpr uint32_t kMaxProcessId = 511;
constexpr uint32_t kFirstMailboxId = 512;
constexpr uint32_t kLastMailboxId = 1022;
constexpr uint32_t kMmuId = 1023;
constexpr uint32_t kIdCount = 1024;

inline uint32_t home_of(uint64_t address) {
    return static_cast<uint32_t>((address - kWindowBase) >> kProcessSpaceBits);
}
inline bool in_window(uint64_t address) { return address - kWindowBase < kWindowBytes; }
inline void* pointer(uint64_t address) { return reinterpret_cast<void*>(address); }

// --- capacities of one table (one group) ----------------------------------------------------
#ifdef BEQUEST_STEP_HOOK  // the tests' table: small enough to run into every limit, and to be explored
constexpr uint32_t kMaxExtents = 1u << 12;
constexpr uint32_t kExtentsPerBlock = 16;
constexpr uint32_t kInboxCells = 8;
constexpr uint32_t kMaxReadings = 8;
#else
constexpr uint32_t kMaxExtents = 1u << 21;
constexpr uint32_t kExtentsPerBlock = 512;
constexpr uint32_t kInboxCells = 1024;
constexpr uint32_t kMaxReadings = 1u << 16;
#endif
constexpr uint32_t kBlockCount = kMaxExtents / kExtentsPerBlock;
constexpr uint32_t kMaxSlabs = 1u << 16;
constexpr uint32_t kNameBytesMax = 63;
constexpr uint32_t kTagBytesMax = 216;
constexpr uint32_t kNoDescriptor = UINT32_MAX;

constexpr uint64_t kTableMagic = 0x3156'5453'4551'4542;  // "BEQSTV1" and a version below it
constexpr uint32_t kTableVersion = 7;

// --- the owner word: who owns this run of pages, how many, and since which epoch -------------
//
//   63  61 60      51 50              27 26                0
//   [state][   id    ][    pages - 1    ][     epoch      ]
//
// One compare-and-swap on this word is the commit point of every change of ownership. The epoch
// grows with each, so that whoever still holds an old word can never act on it again.
enum class State : uint32_t {
    kEmpty = 0,     // the descriptor describes nothing
    kEmbryo = 1,    // one side of a split or merge whose intent is armed
    kFree = 2,      // nobody's data; belongs to the allocator at home
    kOwned = 3,     // a region of `id`
    kInFlight = 4,  // granted to `id`, not yet accepted
    kFrozen = 5,    // nobody writes, everybody may read; kept by `id`: if that is kMmuId, its readers keep it
    kThawing = 6,   // was frozen, and lets no reader in while `id` looks whether there is one
};
constexpr uint32_t kStateCount = 7;

struct OwnerWord {
    uint64_t bits = 0;

    static constexpr unsigned kEpochBits = 27, kPagesBits = 24, kIdBits = 10;
    static OwnerWord make(State state, uint32_t id, uint64_t pages, uint64_t epoch) {
        const uint64_t stored_pages = pages == 0 ? 0 : pages - 1;
        return {static_cast<uint64_t>(state) << 61 | static_cast<uint64_t>(id % kIdCount) << 51 |
                (stored_pages & ((1ull << kPagesBits) - 1)) << kEpochBits |
                (epoch & ((1ull << kEpochBits) - 1))};
    }
    State state() const { return static_cast<State>(bits >> 61); }
    uint32_t id() const { return (bits >> 51) & (kIdCount - 1); }
    uint64_t pages() const {
        return state() == State::kEmpty ? 0 : ((bits >> kEpochBits) & ((1ull << kPagesBits) - 1)) + 1;
    }
    uint64_t epoch() const { return bits & ((1ull << kEpochBits) - 1); }
    // The word that follows this one: the epoch always moves on.
    OwnerWord next(State state, uint32_t id, uint64_t pages) const {
        return make(state, id, pages, epoch() + 1);
    }
    OwnerWord next(State state, uint32_t id) const { return next(state, id, pages()); }
    bool is(State state, uint32_t id) const { return this->state() == state && this->id() == id; }
    // Part of its estate: a region of its own, whether it may be written to or only read.
    bool is_kept_by(uint32_t id) const {
        return is(State::kOwned, id) || is(State::kFrozen, id) || is(State::kThawing, id);
    }
    bool is_frozen() const { return state() == State::kFrozen || state() == State::kThawing; }
    bool operator==(const OwnerWord& other) const { return bits == other.bits; }
};

// --- what lies in the table, in this order ---------------------------------------------------
struct TableHeader {
    uint64_t magic;
    uint32_t version;
    uint32_t group_id;
    uint64_t table_bytes;
    Shared<uint32_t> blocks_used;    // blocks at and above this one were never claimed
    Shared<uint32_t> slabs_used;     // likewise for slab records
    Shared<uint32_t> readings_used;  // and for records of readings
};

// An intent makes a multi-step change of two descriptors restartable: it is armed before the
// first step and disarmed after the last; whoever settles a dead process completes it if the
// commit word has changed and undoes it if not.
//
// The Rack MMU, which steals from the living too, looks at it while its process goes on. So each arming has a
// serial number: what was read between two looks at the same number belongs together.
enum class IntentKind : uint32_t { kNone = 0, kSplit = 1, kMerge = 2 };
struct Intent {
    Shared<uint32_t> armed;           // serial number << 2 | IntentKind
    Guarded<uint32_t> left, right;    // descriptors
    Guarded<uint32_t> settled_state;  // the State that both sides have outside the change
    Guarded<uint64_t> before, after;  // left's owner word on either side of the commit

    static IntentKind kind(uint32_t armed) { return static_cast<IntentKind>(armed & 3); }
    IntentKind kind() const { return kind(armed.load()); }
};

struct Slot {               // one per id
    Shared<uint64_t> life;  // incarnation << 2 | Life
    uint32_t os_pid;
    char name[kNameBytesMax + 1];
    alignas(64) Shared<uint64_t> head;  // the inbox: next position to take,
    alignas(64) Shared<uint64_t> tail;  // and next position to claim
    alignas(64) Shared<uint32_t> doorbell;
    Shared<uint32_t> sleepers;
    Shared<uint32_t> space_bell;
    Shared<uint32_t> space_waiters;
    alignas(64) Shared<uint32_t> returns;  // list of freed extents coming home: descriptor + 1
    Shared<uint32_t> rescan;               // the list may have lost some: look at the table
    alignas(64) Intent intent;
    alignas(64) Shared<uint64_t> grants;
    Shared<uint64_t> granted_pages, accepts, allocs, frees;
    Shared<uint64_t> reads, read_pages;  // of what others keep frozen
    Shared<uint64_t> steals, resumes;
    Shared<uint32_t> revocations;  // how often memory was taken from it: it must look what it still has
    Shared<uint32_t> mends;     // how often a fence may have been left on what is its own: it must mend that
    Shared<uint32_t> heir;      // who may empty its inbox now that it is dead: incarnation << 10 | id, or 0
    Shared<uint32_t> openings;  // how many of its threads are between a look at a word and opening its pages
    // Descriptor + 1 of the frozen extent that it is letting go of, or thawing (readings.hpp), or 0.
    Shared<uint32_t> parting;
    // A robust futex: while the bearer lives, the id of the thread that keeps it, with FUTEX_WAITERS. The
    // kernel marks it when that thread has ended, and wakes one who waits. 0: not attached, or left in good
    // order.
    alignas(64) Shared<uint32_t> lifeline;
    Shared<uint32_t> watched;  // how many want it to beat
    Shared<uint32_t> beats;
};
enum class Life : uint32_t { kEmpty = 0, kLive = 1, kDead = 2 };

struct SlabRecord {
    Shared<uint32_t> id_plus_one;  // 0: none here. index == id % kMaxSlabs
    Guarded<uint32_t> element;
    Guarded<uint64_t> address;
    Guarded<uint32_t> pages;
    Guarded<uint32_t> home;
    Guarded<uint32_t> huge;
    Shared<uint32_t> has_failed;  // memory of it is lost: no run of it is allocated any more
    uint32_t reserved[8];
};

enum ExtentFlag : uint32_t { kNotStealable = 1 };

// What a region is besides its pages: how many bytes of it the user asked for (an extent never has more of
// them than its pages hold), and its flags.
//
//   63        27     26     25      0
//   [  nbytes  ][ flags ][  stamp   ]
//
// Memory can be stolen from a process between any two of its steps, and that process may go on hours later.
// So the details are written before the owner word that makes them count, never after it, and by a
// compare-and-swap: the stamp is the epoch of the writer's word, so that a writer who comes too late finds
// the stamp of the next one and changes nothing (Table::define).
struct Details {
    uint64_t bits = 0;

    static constexpr unsigned kStampBits = 26, kFlagBits = 1, kBytesBits = 37;
    static Details make(uint64_t nbytes, uint32_t flags, uint64_t epoch) {
        return {(nbytes & ((1ull << kBytesBits) - 1)) << (kStampBits + kFlagBits) |
                uint64_t{flags & 1} << kStampBits | (epoch & ((1ull << kStampBits) - 1))};
    }
    uint64_t nbytes() const { return bits >> (kStampBits + kFlagBits); }
    uint32_t flags() const { return bits >> kStampBits & 1; }
};

// Under which number the memory element keeps checksums of a region's pages (seal_ledger.hpp), 0 if it is not
// sealed. Its owner alone says so, and has its pages closed for writing while it does. Written like the
// details, and stamped for the same reason: who is robbed in the middle of it must not seal, or unseal, what
// is another's. So the stamp is renewed by whoever gets the extent without the consent of who had it.
struct Seal {
    uint64_t bits = 0;

    static constexpr unsigned kStampBits = 26;
    static Seal make(uint32_t number, uint64_t epoch) {
        return {uint64_t{number} << kStampBits | (epoch & ((1ull << kStampBits) - 1))};
    }
    uint32_t number() const { return static_cast<uint32_t>(bits >> kStampBits); }
};
constexpr uint32_t kSealNumberMax = (1u << 30) - 1;

struct Descriptor {  // an extent
    Shared<uint64_t> owner;
    Guarded<uint64_t> address;  // constant for as long as the descriptor is not empty
    Shared<uint64_t> details;   // see Details
    Guarded<uint32_t> slab;
    Shared<uint32_t> next;    // in a return list: descriptor + 1
    Shared<uint32_t> linked;  // id + 1 of who put it on a return list, 0: on none
    // The mark of a theft: from whom, and the epoch of the thief's word. It is good while the owner word has
    // that epoch: whatever the thief does with the extent, adopting it first of all, wipes it.
    Guarded<uint32_t> stolen_epoch;
    Guarded<uint32_t> stolen_from, stolen_incarnation;
    // Which region this is part of: made up when it is allocated or comes from another group, and kept,
    // whoever gets it, until it is freed. Another region at these addresses has another (see Table::bear).
    Guarded<uint64_t> birth;
    Shared<uint64_t> seal;  // see Seal
};

// Who reads which frozen extent; 0: nobody, nothing. See readings.hpp.
struct ReadingWord {
    uint32_t bits = 0;
    static constexpr unsigned kDescriptorBits = 21;
    static ReadingWord make(uint32_t id, uint32_t descriptor) {
        return {id % kIdCount << kDescriptorBits | descriptor % kMaxExtents};
    }
    uint32_t id() const { return bits >> kDescriptorBits & (kIdCount - 1); }
    uint32_t descriptor() const { return bits & (kMaxExtents - 1); }
    bool is_of(uint32_t extent) const { return bits != 0 && descriptor() == extent; }
};
static_assert(kMaxExtents <= 1u << ReadingWord::kDescriptorBits);

// --- inbox cells -----------------------------------------------------------------------------
//
//   EMPTY -> CLAIMED(sender) -> FULL <-> TAKING(receiver) -> EMPTY of the next lap
//                          \-> SKIP ------------------------^
//
// A claimed cell is also the record of a grant under way: if its sender dies, the extent's owner
// word says whether the grant was committed, and so whether the cell must be delivered or skipped.
enum class CellState : uint32_t { kEmpty = 0, kClaimed = 1, kFull = 2, kTaking = 3, kSkip = 4 };
struct CellWord {
    uint64_t bits = 0;
    static CellWord make(CellState state, uint32_t id, uint64_t lap) {
        return {static_cast<uint64_t>(state) << 61 | static_cast<uint64_t>(id % kIdCount) << 51 |
                (lap & ((1ull << 51) - 1))};
    }
    CellState state() const { return static_cast<CellState>(bits >> 61); }
    uint32_t id() const { return (bits >> 51) & (kIdCount - 1); }
    uint64_t lap() const { return bits & ((1ull << 51) - 1); }
    bool operator==(const CellWord& other) const { return bits == other.bits; }
};

struct Cell {
    Shared<uint64_t> word;
    Guarded<uint64_t> extent_word;  // the IN_FLIGHT word that commits this delivery
    Shared<uint64_t> sealed_at;     // position + 1, written last: the payload is complete
    Guarded<uint32_t> descriptor;   // or kNoDescriptor: a message without memory
    Guarded<uint32_t> incarnation;  // of the receiver that was meant
    Guarded<uint32_t> sender_incarnation;
    Guarded<uint16_t> sender, tag_bytes;
    unsigned char tag[kTagBytesMax];
};

static_assert(sizeof(Descriptor) == 64, "an extent costs one cache line");
static_assert(sizeof(SlabRecord) == 64);
static_assert(sizeof(Cell) == 256);
static_assert(std::atomic<uint64_t>::is_always_lock_free);

constexpr uint64_t kSlotsOffset = kPageBytes;
constexpr uint64_t kBlocksOffset = kSlotsOffset + kIdCount * sizeof(Slot);
constexpr uint64_t kSlabsOffset = kBlocksOffset + kBlockCount * sizeof(uint64_t);
constexpr uint64_t kCellsOffset = kSlabsOffset + kMaxSlabs * sizeof(SlabRecord);
constexpr uint64_t kDescriptorsOffset = kCellsOffset + uint64_t{kIdCount} * kInboxCells * sizeof(Cell);
constexpr uint64_t kReadingsOffset = kDescriptorsOffset + uint64_t{kMaxExtents} * sizeof(Descriptor);
constexpr uint64_t kTableBytes = kReadingsOffset + uint64_t{kMaxReadings} * sizeof(ReadingWord);
static_assert(kSlotsOffset % 64 == 0 && kCellsOffset % 256 == 0 && kDescriptorsOffset % 64 == 0);

// A step that a test wants to see by name; where it may interfere is every access to shared memory
// (shared.hpp).
#ifdef BEQUEST_STEP_HOOK
extern void (*step_hook)(const char* where);
#define BEQUEST_STEP(where)                                    \
    do {                                                       \
        if (::bequest::step_hook) ::bequest::step_hook(where); \
    } while (0)
#else
#define BEQUEST_STEP(where) \
    do {                    \
    } while (0)
#endif

}  // namespace bequest
