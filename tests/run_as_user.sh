#!/usr/bin/env bash
# Runs the tests with real processes as an ordinary user, when root. Usage: run_as_user.sh PYTHON
#
# As root, half of what can go wrong cannot: no limit holds, every file may be read, every process may be traced. The
# clone and the interpreter may lie where nobody else may look (/root): then this runs in a mount namespace of its own
# where each closed directory on the way is covered by an open one that holds only what the tests need.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
user=nobody

if [ "$(id -u)" != 0 ]; then
    echo "already an ordinary user: pytest has just run these"
    exit 0
fi

suites=()
for suite in tests/integration tests/paper tests/soak; do
    [ -d "$suite" ] && suites+=("$suite")
done

as_user() {
    setpriv --reuid "$user" --regid "$(id -g "$user")" --clear-groups -- "$@"
}

# The first directory on the way to $1 that the user may not enter, if any.
closed_ancestor() {
    local path=/ part
    local -a parts
    IFS=/ read -ra parts <<<"${1#/}"
    for part in "${parts[@]}"; do
        path=${path%/}/$part
        as_user test -x "$path" || { [ -d "$path" ] && echo "$path"; return; }
    done
}

# Lays directory $1 at $2; one that is closed itself (mktemp -d) is replaced by an open one with the same entries.
lay() {
    local entry name
    if as_user test -x "$1"; then
        mount --rbind "$1" "$2"
        return
    fi
    mount -t tmpfs -o mode=755 tmpfs "$2"
    for entry in "$1"/.[!.]* "$1"/*; do
        name=$2/${entry##*/}
        if [ -d "$entry" ] && [ ! -L "$entry" ]; then
            mkdir "$name" && mount --rbind "$entry" "$name"
        elif [ -e "$entry" ]; then
            cp --preserve=mode "$entry" "$name"
        fi
    done
}

needed=("$PWD" "$("$python" -c 'import sys; print(sys.base_prefix)')")
if [ "${BEQUEST_UNSHARED:-}" != 1 ]; then
    for path in "${needed[@]}"; do
        if [ -n "$(closed_ancestor "$path")" ]; then
            unshare --mount true 2>/dev/null || {
                echo "$user may not enter $(closed_ancestor "$path"), and this container may not mount."
                echo "Clone into a directory that all may enter, and choose an interpreter outside /root: make clean; make PYTHON=/usr/bin/python3 test"
                exit 1
            }
            BEQUEST_UNSHARED=1 exec unshare --mount bash tests/run_as_user.sh "$python"
        fi
    done
else
    # Hold each needed directory open by a bind mount before its way is covered, then lay it at its own path again.
    held=$(mktemp -d)
    chmod 755 "$held"
    mount -t tmpfs -o mode=755 tmpfs "$held"
    for i in "${!needed[@]}"; do
        mkdir "$held/$i"
        mount --rbind "${needed[$i]}" "$held/$i"
    done
    for i in "${!needed[@]}"; do
        while closed=$(closed_ancestor "${needed[$i]}") && [ -n "$closed" ]; do
            mount -t tmpfs -o mode=755 tmpfs "$closed"
        done
        mkdir -p "${needed[$i]}"
        lay "$held/$i" "${needed[$i]}"
    done
    umount --lazy "$held"
    rmdir "$held"
    cd "${needed[0]}"
fi

as_user test -r "$PWD/pyproject.toml" -a -r "$PWD/tests/run_as_user.sh" || {
    echo "$user may not read this clone; make it readable: chmod -R go+rX ."
    exit 1
}
scratch=$(mktemp -d /tmp/bqu-XXXXXX)
trap 'rm -rf "$scratch"' EXIT
chown "$user" "$scratch"
as_user env -i PATH="$PATH" LANG=C.UTF-8 HOME="$scratch" TMPDIR="$scratch" ${CI:+CI="$CI"} \
    HYPOTHESIS_STORAGE_DIRECTORY="$scratch/hypothesis" PYTHONDONTWRITEBYTECODE=1 \
    "$python" -m pytest -p no:cacheprovider "${suites[@]}"
