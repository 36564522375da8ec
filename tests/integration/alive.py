"""Whether an operating-system process is still there, to those who wait for its end."""

from __future__ import annotations

from pathlib import Path


def is_running(pid: int) -> bool:
    """False once no thread of it runs any more.

    Its first thread may be a zombie before that: another one is in the middle of a system call on memory, and what
    the process held, such as its rack's lock, is held until that thread has ended too.
    """
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        threads = [thread.name for thread in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return False
    return state not in "ZX" or threads != [str(pid)]
