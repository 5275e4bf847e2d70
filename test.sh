#!/usr/bin/env bash
# One command to a green test run: installs what is missing, checks the house, runs every suite.
# usage: test.sh [ARGUMENTS FOR PYTEST]
set -euo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
# shellcheck source=.ci/setup.sh
. "$here/.ci/setup.sh"
cd "$here"

tools() {
  need vim vim
  need node nodejs
  need npm npm
  need curl curl
  need tar tar
  need find findutils
  need ps procps
  need umount mount
  need dbus-run-session dbus
  need gnome-keyring-daemon gnome-keyring
  need git git
  need bwrap bubblewrap
  need dockerd docker.io
  need podman podman
  need runc runc
  need catatonit catatonit
  need busybox busybox-static
  need docker-registry docker-registry
  install_missing
}

step() {
  local began=$SECONDS
  say "== $*"
  "$@" || die "failed after $((SECONDS - began)) s: $*"
  say "   $((SECONDS - began)) s"
}

# A suite that leaves a mount behind has failed, even if all its tests passed.
leftovers() {
  local place found=0
  while read -r place; do
    umount -l "$place"
    say "left mounted: $place"
    found=1
  done < <(cut -d' ' -f5 /proc/self/mountinfo | grep -F "$scratch/" | sort -r)
  return "$found"
}

[ -c /dev/fuse ] || modprobe fuse 2>/dev/null || die "this machine has no /dev/fuse, and the suites need one"
[ -w /dev/fuse ] || die "/dev/fuse is not open to you: run as root, or let root run \`chmod 666 /dev/fuse\` once"
tools
setup dev
export PATH="$here/.venv/bin:$PATH"
unset "${!AGENTFS_@}"
scratch=$(mktemp -d /tmp/agentfs-test.XXXXXX)
clean() {
  if ! leftovers; then say "taken off"; fi
  rm -rf --one-file-system "$scratch"
}
trap clean EXIT

step ruff check .
step ruff format --check .
step mypy --strict agentfs agentctl conformance tests
step lint-imports
# One more at a time than there are processors, for some tests only wait; a file's tests together, for each
# file may hold one mount; the slowest files first.
step timeout -k 30 1500 pytest -q -n "$(($(nproc) + 1))" --dist loadfile --no-loadscope-reorder --durations=25 --basetemp="$scratch/pytest" "$@"
step leftovers
say "all green after $SECONDS s"
