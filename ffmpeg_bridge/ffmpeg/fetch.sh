#!/bin/sh
# Downloads FFmpeg's source package from Debian, checked by apt against Debian's keys.
#   sh fetch.sh FOLDER [VERSION]
# VERSION      of the package ("7:7.1.5-0+deb13u1"); default: the newest there is
# DEBIAN_MIRROR  in the environment: another mirror than http://deb.debian.org
# Exit status: 0 it lies in FOLDER (ffmpeg_*.dsc and what belongs to it), 3 it cannot be had.
# The apt used has its own lists, so that no deb-src line need be in the system's.
set -eu

fail() {
    echo "fetch.sh: $1" >&2
    exit 3
}

[ $# -ge 1 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
mkdir -p "$1"
work=$(cd "$1" && pwd)
package=${2:-}
command -v apt-get >/dev/null && command -v dpkg-source >/dev/null ||
    fail "apt-get and dpkg-source (package dpkg-dev) are needed; elsewhere give --source"
# shellcheck disable=SC1091
suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-stable}")
mkdir -p "$work/apt/lists/partial" "$work/apt/cache/archives/partial"
rm -f "$work"/ffmpeg_*
mirror=${DEBIAN_MIRROR:-http://deb.debian.org}
for release in $suite trixie; do
    echo "deb-src $mirror/debian $release main"
    echo "deb-src $mirror/debian-security $release-security main"
done | sort -u >"$work/apt/sources.list"
set -- -qq -o Dir::Etc::sourcelist="$work/apt/sources.list" -o Dir::Etc::sourceparts=- \
    -o Dir::State::lists="$work/apt/lists" -o Dir::Cache="$work/apt/cache" -o APT::Sandbox::User= \
    -o Acquire::Retries=1 -o Acquire::http::Timeout=20
if ! apt-get "$@" update ||
    ! (cd "$work" && apt-get "$@" source --download-only "ffmpeg${package:+=$package}"); then
    fail "the source package of ffmpeg ${package:-} is not at $mirror; give --package or --source"
fi
