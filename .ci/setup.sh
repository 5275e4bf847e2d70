# What mount.sh and test.sh share: system packages where they are missing, and the virtual environment.
# Sourced, never run; needs $here, the checkout. Progress goes to standard error.
# shellcheck shell=bash
: "${here:?the checkout}"

# Without compiled modules each start would compile all of agentfs again, which takes as long as the start itself.
unset PYTHONDONTWRITEBYTECODE

say() { printf '%s\n' "$*" >&2; }
die() { say "${0##*/}: $*"; exit 1; }

# need COMMAND PACKAGE: note PACKAGE as missing unless COMMAND exists.
missing=()
need() { command -v "$1" >/dev/null || missing+=("$2"); }

# Install what `need` noted, with one line on what to do where this user cannot.
install_missing() {
  [ ${#missing[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null || die "missing here: ${missing[*]} (names as in Debian); install them and run this again"
  [ "$(id -u)" = 0 ] || die "missing here: ${missing[*]}; as root run: apt-get install ${missing[*]}"
  say "installing system packages: ${missing[*]}"
  quietly apt-get update
  quietly env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"
  missing=()
}

# Run a command without its output, which is shown when it fails.
quietly() {
  local out
  out=$(mktemp)
  if ! "$@" >"$out" 2>&1 </dev/null; then
    tail -n 25 "$out" >&2
    rm -f "$out"
    die "failed: $*"
  fi
  rm -f "$out"
}

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# Set $python to an interpreter of 3.11 or newer, or to nothing.
find_python() {
  local name
  for python in python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3; do
    if is_new_enough "$python"; then
      name=$("$python" -c 'import sys; print(sys.executable)')
      python=$name
      return
    fi
  done
  python=
}

has_header() { "$python" -c 'import os, sysconfig as s; os.stat(s.get_path("include") + "/Python.h")' 2>/dev/null; }

# The packages that Python and, with level dev, fusermount3 and building pyfuse3 need.
install_packages() {
  find_python
  if [ -z "$python" ]; then
    missing+=(python3 python3-venv)
  elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    missing+=("$(package_of venv)")
  fi
  if [ "$1" != base ]; then
    need fusermount3 fuse3
    need pkg-config pkg-config
    need gcc gcc
    pkg-config --exists fuse3 2>/dev/null || missing+=(libfuse3-dev)
    [ -e /usr/include/stdio.h ] || missing+=(libc6-dev)
    if [ -z "$python" ]; then missing+=(python3-dev); elif ! has_header; then missing+=("$(package_of dev)"); fi
  fi
  install_missing
  find_python
  [ -n "$python" ] || die "needs Python 3.11 or newer, found $(python3 --version 2>&1 || echo none)"
}

# Debian's package of a part of $python: python3-dev for the system's own, python3.12-dev for another.
package_of() {
  local version
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  if [ "$(/usr/bin/python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$version" ]; then
    echo "python3-$1"
  else
    echo "python$version-$1"
  fi
}

rank() { case $1 in dev) echo 2 ;; *) echo 1 ;; esac; }
lock_of() { case $1 in base) echo requirements.lock ;; *) echo "requirements-$1.lock" ;; esac; }

# What an environment is made from: it is stale when this changes.
checksum() { cat "$here"/.ci/requirements*.lock "$here/pyproject.toml" "$here/.ci/setup.sh" | sha256sum | cut -d' ' -f1; }

is_ready() {
  local sum level
  read -r sum level 2>/dev/null <"$here/.venv/stamp" || return 1
  [ "$sum" = "$(checksum)" ] && [ "$(rank "$level")" -ge "$(rank "$1")" ] && is_new_enough "$here/.venv/bin/python" &&
    [ -x "$here/.venv/bin/agentfs" ]
}

# Make .venv hold level base or dev; nothing to do when it does already.
# One at a time: the lock is on the checkout itself and is let go before anything is started.
setup() {
  is_ready "$1" && return
  exec 9<"$here"
  flock 9
  if ! is_ready "$1"; then
    install_packages "$1"
    make_environment "$1"
  fi
  exec 9<&-
}

make_environment() {
  local venv=$here/.venv sum
  export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
  sum=$(checksum)
  rm -f "$venv/stamp"
  if ! is_new_enough "$venv/bin/python" || ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
    say "making .venv with $("$python" --version)"
    quietly "$python" -m venv --clear "$venv"
  fi
  say "installing $(lock_of "$1") into .venv$([ "$1" = base ] || echo '; building pyfuse3 takes half a minute')"
  quietly "$venv/bin/python" -m pip install --require-hashes -r "$here/.ci/$(lock_of "$1")"
  quietly "$venv/bin/python" -m pip install --no-deps --no-build-isolation -e "$here"
  echo "$sum $1" >"$venv/stamp"
}
