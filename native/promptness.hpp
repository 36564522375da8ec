// Being let in at once when one is woken.
//
// The scheduler may let who runs go on for a slice, a millisecond or more, before it lets in who has been
// woken; and who wakes for a death does so beside a process that is being taken apart, for which the kernel
// takes milliseconds. Who asks for short slices comes sooner, and gets no more time for it (since Linux 6.12;
// before, it makes no difference). This needs no privilege.
//
// Threads ask for it that sleep until something has failed. Daemons do not: they would have their turn before
// the program whose memory has failed.
#pragma once

namespace bequest {

// Of the calling thread, and not of what it starts.
void ask_for_short_slices();

}  // namespace bequest
