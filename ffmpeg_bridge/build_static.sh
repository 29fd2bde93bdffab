#!/bin/sh
# Builds the part of FFmpeg that a self-contained wheel carries: libavformat, libavcodec and
# libavutil as static libraries under the LGPL, with every demuxer that needs no other library,
# the muxers that vcfilter writes, the decoders without which libavformat cannot tell a stream's
# times or layout, and no encoder, filter or program.
#   sh build_static.sh [--source DIR | --package VERSION] [TARGET]
# TARGET     where they are put; default: $VCFILTER_LIBAV, else ~/.cache/vcfilter/libav
# --source   an unpacked source tree of FFmpeg (5.1 or newer) instead of Debian's source package
# --package  version of the source package; default: the newest of Debian
# JOBS       in the environment: compilers at a time, default 1
# Then `VCFILTER_LIBAV=TARGET pip wheel .` links them into vcfilter (.ci/wheel does all of it).
# Exit status: 0 built, 1 failed, 2 wrong usage, 3 the source package cannot be had.
# TARGET also gets FFmpeg's licence, the package it came from (TARGET/source) and how it was
# configured (TARGET/FFMPEG.txt): what the LGPL wants to go along with the wheel.
# Needs gcc, make, pkg-config, zlib1g-dev and, for the package, apt and dpkg-dev.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
choices='' target=${VCFILTER_LIBAV:-${XDG_CACHE_HOME:-$HOME/.cache}/vcfilter/libav}
. "$here/ffmpeg/arguments.sh"

if [ -z "$source" ]; then
    source=$work/source
    if [ ! -d "$source" ] || [ "$(cat "$work/package" 2>/dev/null)" != "$package" ]; then
        rm -rf "$source" "$target/source"
        sh "$here/ffmpeg/fetch.sh" "$work" "$package"
        (cd "$work" && dpkg-source --no-check -x ffmpeg_*.dsc source >/dev/null)
        mkdir -p "$target/source"
        cp "$work"/ffmpeg_* "$target/source/"
        echo "$package" >"$work/package"
    fi
    origin="Debian's source package $(basename "$work"/ffmpeg_*.dsc .dsc), unchanged"
else
    origin="the source tree $(basename "$source")"
fi
[ -x "$source/configure" ] || fail "$source is no source tree of FFmpeg"
source=$(cd "$source" && pwd)

# Muxers: vcfilter/stream writes these by their file extension, and -f names the others.
muxers=matroska,matroska_audio,webm,nut,avi,mov,mp4,ipod,tgp,psp,f4v,flv,mpegts,mpeg1system,mpeg2vob
muxers=$muxers,mpeg2dvd,mpeg2svcd,ogg,ogv,oga,opus,mxf,asf,wav,flac,mp3,adts,ac3,ivf,obu,h264,hevc
muxers=$muxers,m4v,mpeg1video,mpeg2video,rawvideo,yuv4mpegpipe,null,framecrc,framemd5,framehash,md5
# Decoders: vcfilter decodes through PyAV. But opening a file decodes its first frames where header
# and parser do not say all: without these, AAC in MPEG-TS has no times and no rate, H.264 and HEVC
# in Matroska get wrong decoding times, sound has no frame size, and raw video no pixel format.
decoders=h264,hevc,mpeg1video,mpeg2video,mpeg4,h263,h263p,flv,msmpeg4v1,msmpeg4v2,msmpeg4v3,wmv1,wmv2
decoders=$decoders,wmv3,vc1,vp6,vp6f,vp8,vp9,theora,mjpeg,prores,dnxhd,ffv1,rawvideo,dvvideo,png
decoders=$decoders,huffyuv,ffvhuff,utvideo,v210,cinepak,svq3,aac,aac_latm,ac3,eac3,mp1float,mp2float
decoders=$decoders,mp3float,flac,opus,vorbis,alac,dca,truehd,mlp,wmav1,wmav2,wmapro,adpcm_ima_wav,adpcm_ima_qt
decoders=$decoders,adpcm_ms,pcm_*
set -f # no file is meant
set -- --disable-everything --disable-autodetect --disable-programs --disable-doc --disable-debug \
    --disable-avdevice --disable-avfilter --disable-swscale \
    --disable-x86asm --enable-pic --enable-static --disable-shared --enable-zlib \
    --enable-demuxers --enable-parsers --enable-bsfs --enable-muxer="$muxers" \
    --enable-decoder="$decoders" \
    --enable-protocol=file,pipe,fd,data,concat,concatf,subfile,cache,crypto,http,tcp
# The folder of the build appears in no file that is shipped.
set -- "$@" --extra-cflags="-ffile-prefix-map=$source=ffmpeg -fvisibility=hidden"
if [ "$(cat "$work/options" 2>/dev/null)" != "$source $*" ]; then
    rm -rf "$work/objects" "$work/options"
    mkdir "$work/objects"
    (cd "$work/objects" && "$source/configure" --prefix="$target" "$@" >configure.log 2>&1) || {
        grep -m 1 ERROR "$work/objects/configure.log" >&2 || tail -n 5 "$work/objects/configure.log" >&2
        fail "configure failed: see $work/objects/ffbuild/config.log"
    }
    echo "$source $*" >"$work/options"
fi
cd "$work/objects"
grep -q '^#define FFMPEG_LICENSE "LGPL version 2.1 or later"' config.h ||
    fail "FFmpeg was configured with parts that are not under the LGPL 2.1"
rm -rf "$target/lib" "$target/include"
set +f
make -s -j"${JOBS:-1}" install >make.log 2>&1 || {
    grep -m 5 -i 'error' make.log >&2 || tail -n 5 make.log >&2
    fail "make failed, see $work/objects/make.log"
}
cp "$source/COPYING.LGPLv2.1" "$target/"
{
    cat <<'END'
This build of vcfilter has parts of FFmpeg linked into vcfilter/_bridge/_avformat: libavformat,
libavcodec, libavutil and libswresample, copyright the FFmpeg developers, under the GNU Lesser
General Public License, version 2.1 or later (COPYING.LGPLv2.1). vcfilter itself is under the MIT
licence.

END
    echo "FFmpeg $(cat "$source/RELEASE"), from $origin, configured with"
    sed -n 's/^#define FFMPEG_CONFIGURATION "\(.*\)"$/\1/p' config.h |
        sed "s|--prefix=[^ ]* ||; s|$source|SOURCE|g; s|^|  |"
    cat <<'END'

To replace them by a changed or newer FFmpeg (5.1 or newer), build vcfilter's source archive again:
  sh ffmpeg_bridge/build_static.sh --source FOLDER_OF_FFMPEG TARGET
  VCFILTER_LIBAV=TARGET pip wheel --no-deps .
Whoever passes this wheel on passes on FFmpeg's source too: it is the source package named above,
which `make wheel` puts beside the wheel.
END
} >"$target/FFMPEG.txt"
echo "ready in $target"
