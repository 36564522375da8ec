// A thread that mostly sleeps, and has little to do when it wakes that others wait for.
//
// The scheduler lets who runs go on for a slice, a millisecond or more, before it lets in who has been woken;
// and whoever wakes for a death does so beside a process that is being taken apart, which takes the kernel
// milliseconds. Who asks for short slices is let in at once, and gets no more time for it (Linux 6.12;
// before, it makes no difference). This needs no privilege.
#pragma once

namespace bequest {

// Of the calling thread, and not of what it starts.
void ask_for_short_slices();

}  // namespace bequest
