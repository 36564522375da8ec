#include "holding.hpp"

#include <algorithm>
#include <cassert>
#include <cstring>

namespace bequest {

namespace {

using Range = AddressSpace::Range;

Range range_of(const PlacedExtent& piece) {
    return {piece.address, piece.address + piece.extent.word.pages() * kPageBytes};
}

// A predicate that throws leaves those as they are that it has not said yes to.
template <class IsGone>
void erase_each(std::vector<PlacedExtent>& pieces, const IsGone& is_gone) {
    for (size_t i = 0; i < pieces.size();) {
        if (is_gone(pieces[i]))
            pieces.erase(pieces.begin() + static_cast<std::ptrdiff_t>(i));
        else
            i++;
    }
}

}  // namespace

// The counts come first and are remembered last: what is taken meanwhile is looked at next time, and so is
// all of it if something here throws. Pieces of which a page is bad are kept, too: somebody may be in the
// middle of touching the others.
void reconcile(const std::vector<std::shared_ptr<Member>>& members) {
    if (members.empty()) return;
    std::vector<Range> kept;
    std::vector<uint32_t> seen;
    for (const auto& member : members) {
        seen.push_back(member->slot().revocations.load());
        for (Holding* holding : member->holdings) {
            holding->drop_stolen();
            for (const PlacedExtent& piece : holding->pieces()) kept.push_back(range_of(piece));
            for (const PlacedExtent& piece : holding->bad()) kept.push_back(range_of(piece));
        }
    }
    std::sort(kept.begin(), kept.end(), [](const auto& a, const auto& b) { return a.start < b.start; });
    members.front()->attachment.space().forget_all_but(kept);
    for (size_t i = 0; i < members.size(); i++) members[i]->seen_revocations = seen[i];
}

void Member::account_for(uint64_t start, uint64_t end, FaultKind kind) {
    for (Holding* holding : holdings) {
        const uint64_t first = holding->address(),
                       last = first + holding->pages_of({0, holding->nbytes()}).end;
        if (start < last && first < end)
            holding->drop_bad({std::max(start, first) - first, std::min(end, last) - first}, kind);
    }
}

Holding* Member::holding_at(uint64_t address) const {
    for (Holding* holding : holdings)
        if (holding->piece_at(address)) return holding;
    for (Holding* holding : holdings)
        if (holding->loss_at(address)) return holding;
    return nullptr;
}

size_t Member::views_of(uint64_t start, uint64_t end) const {
    size_t views = 0;
    for (const Holding* holding : holdings)
        if (start < holding->address() + holding->nbytes() && holding->address() < end)
            views += holding->borrows_of(
                {std::max(start, holding->address()) - holding->address(), end - holding->address()});
    return views;
}

Holding::Holding(std::shared_ptr<Member> member, const Extent& extent)
    : member_(std::move(member)),
      address_(member_->attachment.address(extent)),
      nbytes_(member_->attachment.nbytes(extent)),
      pieces_{{address_, extent}} {
    enter();
}

Holding::Holding(std::shared_ptr<Member> member) : member_(std::move(member)) { enter(); }

Holding::Holding(std::shared_ptr<Member> member, const HeldReading& reading)
    : Holding(std::move(member), reading.extent) {
    reading_ = reading;
    quiet = true;
}

void Holding::enter() {
    place_ = member_->holdings.size();
    member_->holdings.push_back(this);
}

Holding::~Holding() {
    for (const Loss& loss : losses_)  // nobody can have a view of them now
        if (!is_lost_elsewhere(loss))
            member_->attachment.space().forget_lost(address_ + loss.span.start,
                                                    loss.span.end - loss.span.start);
    std::vector<Holding*>& holdings = member_->holdings;
    holdings[place_] = holdings.back();
    holdings[place_]->place_ = place_;
    holdings.pop_back();
}

// The last page of a span belongs to it whole: the user's length need not fill it, and a region of
// huge pages may have many pages behind its last byte.
Span Holding::pages_of(const Span& span) const {
    if (span.end != nbytes_) return span;
    uint64_t end = (span.end + kPageBytes - 1) / kPageBytes * kPageBytes;
    if (!pieces_.empty()) end = std::max(end, span_of(pieces_.back()).end);
    return {span.start, end};
}

bool Holding::owns(const Span& span) const {
    uint64_t covered = span.start;
    for (const PlacedExtent& piece : pieces_) {
        const Span s = span_of(piece);
        if (s.start > covered) break;
        covered = std::max(covered, s.end);
    }
    return covered >= span.end && (span.end > span.start || nbytes_ == 0 || !pieces_.empty());
}

std::vector<Span> Holding::remaining(const Span& within) const {
    std::vector<Span> spans;
    for (const PlacedExtent& piece : pieces_) {
        Span s = span_of(piece);
        s = {std::max(s.start, within.start), std::min({s.end, within.end, nbytes_})};
        if (s.start >= s.end) continue;
        if (!spans.empty() && spans.back().end == s.start) {
            spans.back().end = s.end;
        } else {
            spans.push_back(s);
        }
    }
    return spans;
}

void Holding::give_back(const Span& span) {
    for (size_t i = borrows_.size(); i-- > 0;) {
        if (borrows_[i].start != span.start || borrows_[i].end != span.end) continue;
        borrows_[i] = borrows_.back();
        borrows_.pop_back();
        return;
    }
}

size_t Holding::borrows_of(const Span& span) const {
    size_t count = 0;
    for (const Span& borrow : borrows_) count += borrow.overlaps(span);
    return count;
}

// Makes a piece begin at this offset, if one lies across it.
bool Holding::cut_at(uint64_t at) {
    for (size_t i = 0; i < pieces_.size(); i++) {
        const Span s = span_of(pieces_[i]);
        if (at <= s.start || at >= s.end) continue;
        const auto right = member_->attachment.split(pieces_[i].extent, (at - s.start) / kPageBytes);
        if (!right) return false;
        pieces_.insert(pieces_.begin() + static_cast<std::ptrdiff_t>(i) + 1, {address_ + at, *right});
        return true;
    }
    return true;
}

std::optional<Extent> Holding::take_out(const Span& span) {
    assert(span.start % kPageBytes == 0 && span.end % kPageBytes == 0 && span.start < span.end);
    if (!owns(span)) return std::nullopt;
    if (!cut_at(span.start) || !cut_at(span.end)) return std::nullopt;
    const auto inside = [&](const PlacedExtent& piece) {
        const Span s = span_of(piece);
        return s.start >= span.start && s.end <= span.end;
    };
    const auto first = std::find_if(pieces_.begin(), pieces_.end(), inside);
    assert(first != pieces_.end());
    PlacedExtent whole = *first;
    auto last = first + 1;
    for (; last != pieces_.end() && inside(*last); ++last) {
        if (!member_->attachment.merge(whole.extent, last->extent)) break;
    }
    *first = whole;
    pieces_.erase(first + 1, last);
    const Span got = span_of(whole);
    if (got.start != span.start || got.end != span.end) return std::nullopt;
    pieces_.erase(first);
    return whole.extent;
}

void Holding::put_in(const Extent& extent, uint64_t offset) {
    const PlacedExtent piece{address_ + offset, extent};
    pieces_.insert(std::upper_bound(pieces_.begin(), pieces_.end(), piece), piece);
}

uint64_t Holding::free_span(const Span& span) {
    const auto whole = take_out(span);
    if (!whole) return 0;
    const uint64_t bytes = whole->word.pages() * kPageBytes;
    try {
        return member_->attachment.free(*whole) ? bytes : 0;
    } catch (...) {
        put_in(*whole, span.start);
        throw;
    }
}

void Holding::let_go() {
    if (!reading_) return;
    member_->attachment.let_go(*reading_);  // which may throw: then it is being read still
    reading_.reset();
    pieces_.clear(), bad_.clear();
}

uint64_t Holding::free_all() {
    if (is_reading()) return let_go(), 0;
    uint64_t bytes = 0;
    while (!pieces_.empty()) {
        const Extent piece = pieces_.back().extent;  // freed before it is forgotten: freeing may throw
        if (member_->attachment.free(piece)) bytes += piece.word.pages() * kPageBytes;
        pieces_.pop_back();
    }
    return bytes + free_bad({0, UINT64_MAX});
}

// --- losses --------------------------------------------------------------------------------------

const Loss* Holding::loss_of(const Span& span) const {
    for (const Loss& loss : losses_)
        if (loss.span.overlaps(span)) return &loss;
    return nullptr;
}

const Loss* Holding::loss_at(uint64_t address) const {
    return loss_of({address - address_, address - address_ + 1});
}

const PlacedExtent* Holding::piece_at(uint64_t address) const {
    for (const PlacedExtent& piece : pieces_)
        if (address - piece.address < piece.extent.word.pages() * kPageBytes) return &piece;
    return nullptr;
}

bool Holding::stands(const Span& span) const {
    if (is_reading()) return true;
    for (const PlacedExtent& piece : pieces_)
        if (span_of(piece).overlaps(span) && !member_->attachment.still_ours(piece.extent)) return false;
    return true;
}

// It is sealed as a whole, and so are the parts that are left of it.
bool Holding::is_sealed() const {
    const Table table = member_->attachment.table();
    return sealing || std::any_of(pieces_.begin(), pieces_.end(), [&](const PlacedExtent& piece) {
               return table.seal(piece.extent.descriptor) != 0;
           });
}

bool Holding::is_frozen() const {
    return !is_reading() && std::any_of(pieces_.begin(), pieces_.end(), [](const PlacedExtent& piece) {
        return piece.extent.word.is_frozen();
    });
}

bool Holding::has_bad(const Span& span) const {
    for (const PlacedExtent& piece : bad_)
        if (span_of(piece).overlaps(span)) return true;
    return false;
}

// Addresses come back, and may be lost again.
bool Holding::is_lost_elsewhere(const Loss& loss) const {
    const Span here = loss.span.shifted(address_);
    for (const Holding* other : member_->holdings) {
        if (other == this) continue;
        for (const Loss& theirs : other->losses_)
            if (theirs.span.shifted(other->address_).overlaps(here)) return true;
    }
    return false;
}

bool Holding::drop_if_stolen(const PlacedExtent& piece) {
    Attachment& attachment = member_->attachment;
    if (is_reading() || attachment.still_ours(piece.extent)) return false;
    const OwnerWord now = attachment.table().owner(piece.extent.descriptor);
    std::string cause = "was stolen";
    if (now.id() <= kMaxProcessId && now.is_kept_by(now.id())) {
        const Slot& thief = attachment.table().slot(now.id());
        cause += " by '" + std::string(thief.name, strnlen(thief.name, kNameBytesMax)) + "'";
    }
    const Span span = span_of(piece);
    attachment.space().lose(piece.address, span.end - span.start);
    losses_.push_back({span, true, cause});
    fate = cause;
    return true;
}

void Holding::drop_stolen() {
    const auto is_stolen = [this](const PlacedExtent& piece) { return drop_if_stolen(piece); };
    erase_each(pieces_, is_stolen);
    erase_each(bad_, is_stolen);
}

// A piece of which a page is bad is bad as a whole, and stays ours until it is freed. Its other pages stay
// open to who has views of them.
void Holding::drop_bad(const Span& bad, FaultKind kind) {
    const bool fenced = kind == FaultKind::kFenced;
    erase_each(pieces_, [&](const PlacedExtent& piece) {
        if (!span_of(piece).overlaps(bad)) return false;
        if (drop_if_stolen(piece)) return true;
        fate = fenced ? "was fenced off for a theft" : "has failed";
        losses_.push_back({span_of(piece), fenced, fate});
        bad_.push_back(piece);
        return true;
    });
}

uint64_t Holding::free_bad(const Span& span) {
    uint64_t bytes = 0;
    erase_each(bad_, [&](const PlacedExtent& piece) {
        const Span s = span_of(piece);
        if (!s.overlaps(span)) return false;
        Attachment& attachment = member_->attachment;
        attachment.space().lose(piece.address, s.end - s.start);
        const Loss* loss = loss_of(s);
        const bool freed =
            loss && loss->stolen ? attachment.free(piece.extent) : attachment.free_failed(piece.extent);
        if (freed) bytes += s.end - s.start;
        return true;
    });
    return bytes;
}

}  // namespace bequest
