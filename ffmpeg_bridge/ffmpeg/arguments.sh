# The command line that the two builds of FFmpeg share, to be sourced. Before: $choices, words that
# choose what is built, the default first; $target, where it is put by default. After: $what, $source
# and $package (empty where not given), $target and $work, which exist.
# shellcheck shell=sh disable=SC2034

usage() {
    sed -n '2,${/^#/!q;s/^# \{0,1\}//p;}' "$0" >&2
    exit 2
}

fail() {
    echo "$(basename "$0"): $1" >&2
    exit "${2:-1}"
}

what=${choices%% *} source='' package=''
while [ $# -gt 0 ]; do
    case $1 in
    --source) [ $# -ge 2 ] || usage; source=$2; shift ;;
    --package) [ $# -ge 2 ] || usage; package=$2; shift ;;
    -*) usage ;;
    *)
        case " $choices " in
        *" $1 "*) what=$1 ;;
        *) target=$1 ;;
        esac
        ;;
    esac
    shift
done
mkdir -p "$target"
target=$(cd "$target" && pwd)
work=$target/build
mkdir -p "$work"
