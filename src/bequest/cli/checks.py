"""The list of what `bequest doctor` looks at: each probe with what it is for and what to do if it fails."""

from __future__ import annotations

from bequest.cli import probes
from bequest.cli.probes import Check

CHECKS: tuple[Check, ...] = (
    Check(
        "platform", "platform", probes.probe_platform,
        "Bequest does not work at all: it stands on calls that only Linux has, on x86-64 or ARM64 with 4 KiB pages.",
        "Use such a machine, or a virtual one.",
        required=True,
    ),
    Check(
        "kernel", "kernel", probes.probe_kernel,
        "Below 6.1 there are no 2 MiB pages without a reservation; below 5.11 fencing and more are missing.",
        "Run Linux 6.1 or newer.",
    ),
    Check(
        "native_core", "native core", probes.probe_native_core,
        "Nothing can attach to a rack.",
        "Reinstall bequest for this Python: pip install --force-reinstall bequest.",
        required=True,
    ),
    Check(
        "runtime_directory", "directory for racks", probes.probe_runtime_directory,
        "No rack can be started or found.",
        "Set XDG_RUNTIME_DIR to a directory of your own, or have the one named here removed.",
        required=True,
    ),
    Check(
        "memfd", "memfd with seals", probes.probe_memfd,
        "There is no memory that can be handed from process to process without a name.",
        "Use a kernel with CONFIG_MEMFD_CREATE, and a container that allows memfd_create.",
        required=True,
    ),
    Check(
        "window", "rack window", probes.probe_window,
        "Processes of this environment cannot attach: memory must have the same address in all of them.",
        "Lift the limit on address space (ulimit -v unlimited); run without sanitizers that occupy it.",
        required=True,
    ),
    Check(
        "pidfd", "pidfd", probes.probe_pidfd,
        "The death of a process cannot be noticed, nor a certain process be killed.",
        "Run Linux 5.3 or newer, in a container that allows pidfd_open.",
        required=True,
    ),
    Check(
        "collapse", "2 MiB pages on demand", probes.probe_collapse,
        "Large regions change hands page by page: about a hundred times slower.",
        "Run Linux 6.1 or newer with CONFIG_TRANSPARENT_HUGEPAGE, or reserve huge pages for elements of kind huge.",
    ),
    Check(
        "hugetlb", "reserved huge pages", probes.probe_hugetlb,
        "Memory elements of kind huge cannot be made. Those of kind dram have 2 MiB pages without.",
        "Only if you want them: sysctl vm.nr_hugepages=COUNT, as root.",
    ),
    Check(
        "populate", "populating pages", probes.probe_populate,
        "New slabs take longer to be ready.",
        "Run Linux 5.14 or newer.",
    ),
    Check(
        "userfaultfd", "userfaultfd", probes.probe_userfaultfd,
        "A process that hangs can be fenced only by ptrace or by killing it; a death is proven the later, the more "
        "memory the dead had, up to 50 ms for a GiB; ranges of memory are made to fail by ptrace or not at all.",
        "Run Linux 5.19 or newer, in a container that allows userfaultfd.",
    ),
    Check(
        "ptrace", "ptrace", probes.probe_ptrace,
        "The second way to fence a process that runs or hangs is closed; there remain userfaultfd and, where the group "
        "allows it, killing it.",
        "sysctl kernel.yama.ptrace_scope=1, as root, and a container that allows ptrace; on other processors, none.",
    ),
    Check(
        "robust_futex", "robust futexes", probes.probe_robust_futex,
        "Deaths are noticed by pidfd alone: the later, the more memory the dead had, up to 50 ms for a GiB.",
        "Use a C library that registers robust lists, as glibc and musl do, and a container that allows them.",
    ),
    Check(
        "futex_waitv", "waiting for many", probes.probe_futex_waitv,
        "Each process that is watched costs a thread.",
        "Run Linux 5.16 or newer, in a container that allows futex_waitv.",
    ),
    Check(
        "mappings", "mappings", probes.probe_mappings,
        "Processes with very many small regions get TooManyMappings sooner.",
        "sysctl vm.max_map_count=262144, as root.",
    ),
    Check(
        "descriptors", "open files", probes.probe_descriptors,
        "A memory element can hold only that many slabs.",
        "Raise the hard limit (ulimit -Hn, LimitNOFILE= of systemd, --ulimit nofile= of docker).",
    ),
    Check(
        "cgroup", "memory of the container", probes.probe_cgroup,
        "Racks cannot be larger than that; their memory counts for the container in which they were started.",
        "Give the container more memory, or make smaller memory elements.",
    ),
    Check(
        "overcommit", "overcommit", probes.probe_overcommit,
        "The kernel may refuse memory that is there, since every reservation counts as used.",
        "sysctl vm.overcommit_memory=0, as root.",
    ),
    Check(
        "shm", "/dev/shm", probes.probe_shm,
        "Racks do not use it, but multiprocessing does, for its locks and queues.",
        "Mount a tmpfs there, writable by all (docker: --shm-size).",
    ),
)  # fmt: skip
