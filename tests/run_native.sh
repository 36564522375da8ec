#!/usr/bin/env bash
# Builds the native core with its step hook and runs tests/native and tests/crash. What each mutant of the heap was
# noticed by is in BUILD_DIR/mutants.txt. Usage: run_native.sh BUILD_DIR [CMAKE OPTION…]
# ThreadSanitizer wants a memory layout without randomisation on newer kernels, hence setarch where it is allowed.
set -euo pipefail
cd "$(dirname "$0")/.."
compgen -G 'tests/native/*.cpp' >/dev/null || { echo "tests/native holds no test"; exit 1; }
directory=$1
shift
log=$directory/build.log
mkdir -p "$directory"
PATH=$PWD/.venv/bin:$PATH
exec {lock}>"$directory/.lock"
flock "$lock" # two builds at once in one directory would break each other
{ cmake -S . -B "$directory" -G Ninja -DBEQUEST_TESTS=ON "$@" && cmake --build "$directory"; } >"$log" 2>&1 ||
    { cat "$log"; exit 1; }
grep -E 'warning:' "$log" || true
exec {lock}>&-

export ASAN_OPTIONS=detect_leaks=1:abort_on_error=0 UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1
plainly=()
case " $* " in
    *=thread*) setarch -R true 2>/dev/null && plainly=(setarch -R) ;;
esac
"${plainly[@]}" "$directory/native_tests"
case " $* " in
    *=thread*) ;; # a heap is one thread's
    *=address*) BEQUEST_CRASH_STATES=300 "$directory/crash_tests" ;;
    *)
        "$directory/crash_tests"
        "$directory/crash_tests" mutants >"$directory/mutants.txt" || { grep LIVES "$directory/mutants.txt"; exit 1; }
        tail -n 1 "$directory/mutants.txt"
        ;;
esac
