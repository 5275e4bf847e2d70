#!/usr/bin/env bash
# One command to a mounted, working agent: installs what is missing, then hands over to `agentfs`.
set -euo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
# shellcheck source=.ci/setup.sh
. "$here/.ci/setup.sh"

usage() {
  cat <<'END'
usage: mount.sh [up|down|status] [--state DIR] [--mount DIR] [--listen HOST:PORT] [--no-fuse] [--foreground]

up      (default) install what is missing, start the runtime, create the agent demo, mount
down    stop the runtime and unmount; again is no harm
status  whether it runs and answers

Without --mount the tree is mounted on /run/agentfs (root) or below the XDG runtime directory, and ./mnt
links to it; with --mount it is mounted exactly there. Without --listen: 127.0.0.1:8080. With --no-fuse
there is only HTTP, and no FUSE package is needed.
END
}

verb=up state='' mount='' is_fuse=true is_foreground=false
flags=()
# take FLAG VALUE: remember an option that agentfs takes too.
take() {
  [ -n "$2" ] || { say "mount.sh: $1 needs a value"; exit 2; }
  flags+=("$1=$2")
}
parse() {
  while [ $# -gt 0 ]; do
    case $1 in
      up | down | status) verb=$1 ;;
      --state | --mount | --listen) [ $# -gt 1 ] || take "$1" ''; set -- "$1=$2" "${@:3}"; continue ;;
      --state=*) state=${1#*=}; take --state "$state" ;;
      --mount=*) mount=${1#*=}; take --mount "$mount" ;;
      --listen=*) take --listen "${1#*=}" ;;
      --no-fuse) is_fuse=false ;;
      --foreground) is_foreground=true ;;
      -h | --help) usage; exit ;;
      *) say "mount.sh: unknown argument $1"; usage >&2; exit 2 ;;
    esac
    shift
  done
}

# One line before a minute of installing, where mounting cannot work.
check_device() {
  [ -e /dev/fuse ] || modprobe fuse 2>/dev/null || die "this machine has no /dev/fuse: load the fuse module, or use --no-fuse"
  [ -w /dev/fuse ] ||
    die "/dev/fuse is not open to you: run as root, or let root run \`chmod 666 /dev/fuse\` once, or use --no-fuse"
}

next_steps() {
  local ctl="$here/.venv/bin/agentctl${state:+ --state $(printf %q "$state")}" top=${mount:-$here/mnt}
  if $is_fuse && [ -d "$top/agents/demo" ]; then
    top=$(printf %q "$top/agents/demo")
    cat <<END
next: ls $top; cat $top/status
      tail -f $top/outbox &
      echo 'remind me in 2 seconds to drink water' > $top/inbox
      $ctl logs demo --follow
END
  else
    cat <<END
next: $ctl ls agents/demo
      $ctl watch agents/demo/outbox &
      $ctl send demo 'remind me in 2 seconds to drink water'
      $ctl logs demo --follow
END
  fi
  printf '      %q down%s\n' "$0" "${state:+ --state $(printf %q "$state")}"
}

up() {
  local words=(--agent demo)
  [ "$(id -u)" != 0 ] || need bwrap bubblewrap  # sandboxes; without it, and without an engine, all else works
  if $is_fuse; then
    check_device
    [ "$(id -u)" = 0 ] || need fusermount3 fuse3  # root mounts by itself
    [ -n "$mount" ] || words+=("--link=$here/mnt")
  else
    words+=(--no-fuse)
  fi
  setup base
  if $is_foreground; then
    exec "$here/.venv/bin/agentfs" mount "${flags[@]}" "${words[@]}" --foreground
  fi
  "$here/.venv/bin/agentfs" mount "${flags[@]}" "${words[@]}"
  next_steps
}

down() {
  if [ ! -x "$here/.venv/bin/agentfs" ]; then
    say "nothing is installed here, so nothing runs"
    return
  fi
  local words=()
  [ -z "$state" ] || words+=("--state=$state")
  [ -z "$mount" ] || words+=("--mount=$mount")
  exec "$here/.venv/bin/agentfs" umount "${words[@]}" "--link=$here/mnt"
}

status() {
  if [ ! -x "$here/.venv/bin/agentfs" ]; then
    say "nothing is installed here, so nothing runs"
    exit 3
  fi
  exec "$here/.venv/bin/agentfs" status ${state:+"--state=$state"} --output table
}

parse "$@"
"$verb"
