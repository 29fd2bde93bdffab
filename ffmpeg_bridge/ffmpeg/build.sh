#!/bin/sh
# Builds an FFmpeg that reads and writes vcfilter, from the distribution's source package.
#   sh build.sh [--source DIR | --package VERSION] [tools|libraries] [TARGET]
# tools      a small static ffmpeg, ffprobe and, where SDL 2 is, ffplay: for tests and first steps
# libraries  libavcodec and libavformat with all options of the installed ffmpeg, to stand beside
#            the system's; TARGET/bin/vcfilter-env runs any installed program with them
# TARGET     where they are put; default: $VCFILTER_FFMPEG, else ~/.cache/vcfilter/ffmpeg
# --source   an unpacked source tree of FFmpeg (5.1 to 7.1) instead of the package; it is changed
# --package  version of the source package; default: that of the installed ffmpeg
# JOBS       in the environment: compilers at a time, default 1
# VCFILTER_CONFIGURE  in the environment: configure options of `libraries` instead of the
#            installed ffmpeg's, where not all libraries that those need are at hand
# Exit status: 0 built, 1 failed, 2 wrong usage, 3 the source package cannot be had.
# Nothing of the system is overwritten. Needs gcc, make, pkg-config, dpkg-dev, apt and, for speed,
# nasm; `libraries` also what `apt-get build-dep --arch-only SOURCE` installs, about 180 packages.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
choices='tools libraries' target=${VCFILTER_FFMPEG:-${XDG_CACHE_HOME:-$HOME/.cache}/vcfilter/ffmpeg}
. "$here/arguments.sh"

if [ -z "$source" ]; then
    source=$work/source
    if [ -z "$package" ]; then
        package=$(dpkg-query -W -f='${source:Version}' ffmpeg 2>/dev/null || true)
    fi
    if [ "$(cat "$work/package" 2>/dev/null || echo none)" != "$package" ]; then
        sh "$here/fetch.sh" "$work" "$package"
        echo "$package" >"$work/package"
        rm -rf "$source"
    fi
    # A tree that was registered in another way is unpacked anew.
    if [ ! -d "$source" ] || ! cmp -s "$here/register.sh" "$work/register.sh"; then
        rm -rf "$source" "$work/register.sh"
        (cd "$work" && dpkg-source --no-check -x ffmpeg_*.dsc source >/dev/null)
        cp "$here/register.sh" "$work/register.sh"
    fi
fi
[ -x "$source/configure" ] || fail "$source is no source tree of FFmpeg"
source=$(cd "$source" && pwd)
sh "$here/register.sh" "$source"

if [ "$what" = tools ]; then
    set -- --disable-everything --disable-autodetect --disable-doc --disable-debug \
        --disable-network --enable-zlib \
        --enable-decoder=libvcfilter,h264,hevc,vp9,mpeg2video,mpeg4,mjpeg,rawvideo,wrapped_avframe,ffv1,png \
        --enable-decoder=aac,ac3,mp3,flac,opus,vorbis,pcm_s16le,pcm_s24le,pcm_f32le \
        --enable-encoder=libvcfilter,mpeg4,aac,ac3,flac,pcm_s16le,rawvideo,wrapped_avframe,ffv1,png \
        --enable-demuxer=matroska,nut,avi,mov,mpegts,rawvideo,yuv4mpegpipe,wav,flac,mp3,ogg,image2,concat \
        --enable-muxer=matroska,nut,avi,mov,mp4,rawvideo,yuv4mpegpipe,wav,null,framemd5,framehash,framecrc,md5,image2,segment,tee \
        --enable-parser=h264,hevc,vp9,mpegvideo,mpeg4video,aac,ac3,flac,opus,vorbis,mpegaudio \
        --enable-bsf=h264_mp4toannexb,hevc_mp4toannexb,vp9_superframe_split,aac_adtstoasc,extract_extradata,vcfilter_thin \
        --enable-protocol=file,pipe,fd --enable-indev=lavfi \
        --enable-filter=scale,format,fps,null,trim,setpts,hflip,vflip,transpose,rotate,crop,pad,hstack,overlay,psnr,split,color,testsrc2,aformat,aresample,anull,atrim,asetpts,sine,anullsrc,copy
    pkg-config --exists sdl2 && set -- "$@" --enable-sdl2
else
    command -v ffmpeg >/dev/null || fail "ffmpeg has to be installed: its options are taken"
    system=$(ffmpeg -version | sed -n '1s/^ffmpeg version \([0-9.]*\).*/\1/p')
    tree=$(cat "$source/RELEASE" 2>/dev/null || cat "$source/VERSION")
    [ "$system" = "$tree" ] ||
        fail "the source is FFmpeg $tree, installed is $system: libraries must be of one version"
    # shellcheck disable=SC2046  # a list of options, none with blanks
    set -- ${VCFILTER_CONFIGURE:-$(ffmpeg -hide_banner -buildconf | sed -n 's/^ *\(--.*\)/\1/p')} \
        --enable-shared --disable-static --disable-doc
fi
command -v nasm >/dev/null || set -- "$@" --disable-x86asm
# Configuring anew compiles everything anew, so only where it has to be.
if [ "$(cat "$work/$what/options" 2>/dev/null)" != "$source $*" ] ||
    [ "$source/configure" -nt "$work/$what/ffbuild/config.mak" ]; then
    rm -rf "${work:?}/$what"
    mkdir "$work/$what"
    cd "$work/$what"
    "$source/configure" "$@" >configure.log 2>&1 || {
        grep -m 1 ERROR configure.log >&2 || tail -n 5 configure.log >&2
        hint="see $work/$what/ffbuild/config.log"
        [ "$what" = tools ] || hint="run 'apt-get build-dep --arch-only $source' as root first, or $hint"
        fail "configure failed: $hint"
    }
    echo "$source $*" >options
fi
cd "$work/$what"

compile() {
    make -s -j"${JOBS:-1}" "$@" >make.log 2>&1 || {
        grep -m 5 -i 'error' make.log >&2 || tail -n 5 make.log >&2
        fail "make failed, see $work/$what/make.log"
    }
}

mkdir -p "$target/bin"
if [ "$what" = tools ]; then
    compile
    for program in ffmpeg ffprobe ffplay; do
        [ ! -x "$program" ] || cp "$program" "$target/bin/"
    done
    "$target/bin/ffmpeg" -hide_banner -h encoder=vcfilter | grep -q '^Encoder vcfilter' ||
        fail "$target/bin/ffmpeg does not know the codec"
else
    set --
    for library in avcodec avformat; do
        set -- "$@" "lib$library/lib$library.so"
    done
    compile "$@"
    mkdir -p "$target/lib"
    for library in avcodec avformat; do
        major=$(sed -n "s/^lib${library}_VERSION_MAJOR=//p" ffbuild/config.mak "lib$library/lib$library.version" | head -n 1)
        cp "lib$library/lib$library.so" "$target/lib/lib$library.so.$major.new"
        mv "$target/lib/lib$library.so.$major.new" "$target/lib/lib$library.so.$major"
    done
    cp "$here/vcfilter-env" "$target/bin/vcfilter-env"
    chmod +x "$target/bin/vcfilter-env"
    "$target/bin/vcfilter-env" ffmpeg -hide_banner -h encoder=vcfilter | grep -q '^Encoder vcfilter' ||
        fail "the installed ffmpeg does not run with the libraries, or does not know the codec"
fi
echo "ready in $target"
