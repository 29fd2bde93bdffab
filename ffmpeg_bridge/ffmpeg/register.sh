#!/bin/sh
# Puts vcfilter into an FFmpeg source tree: copies the C files of this folder and adds the lines
# that register the codec, its bitstream filter and its FourCC. For FFmpeg 5.1 to 7.1; running it again
# changes nothing.
#   sh register.sh FFMPEG_SOURCE
set -eu
if [ $# -ne 1 ] || [ ! -f "$1/libavcodec/allcodecs.c" ]; then
    echo "usage: sh register.sh FFMPEG_SOURCE (an unpacked source tree of FFmpeg)" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
tree=$1

# Copies a file unless the tree has the same one: make rebuilds only what changed.
place() {
    cmp -s "$here/$1" "$tree/$2/$1" || cp "$here/$1" "$tree/$2/$1"
}

# insert FILE before|after FIXED-TEXT LINES: puts lines beside the first line with that text.
insert() {
    case $(cat "$tree/$1") in *"$4"*) return 0 ;; esac
    if grep -qE 'VCFILTER|libvcfilter' "$tree/$1"; then
        echo "register.sh: $1 holds lines of another vcfilter: unpack FFmpeg's source anew" >&2
        exit 1
    fi
    if ! grep -qF -- "$3" "$tree/$1"; then
        echo "register.sh: $1 has no line with '$3': this version of FFmpeg is not known" >&2
        exit 1
    fi
    where=$2 text=$3 lines=$4 awk '
        !done && index($0, ENVIRON["text"]) {
            done = 1
            if (ENVIRON["where"] == "before") print ENVIRON["lines"]
            print
            if (ENVIRON["where"] == "after") print ENVIRON["lines"]
            next
        }
        { print }' "$tree/$1" >"$tree/$1.new"
    cat "$tree/$1.new" >"$tree/$1" # keeps the mode: configure is executable
    rm "$tree/$1.new"
}

for file in "$here"/libvcfilter*.[ch] "$here"/vcf_*.[ch]; do
    place "${file##*/}" libavcodec
done

# The number is fixed, so that it is the same in every version, and stays below the sound codecs.
insert libavcodec/codec_id.h before '/* various PCM "codecs" */' \
    '    AV_CODEC_ID_VCFILTER = 0xFCF1,
'
insert libavcodec/codec_desc.c before '/* various PCM "codecs" */' \
    '    {
        .id        = AV_CODEC_ID_VCFILTER,
        .type      = AVMEDIA_TYPE_VIDEO,
        .name      = "vcfilter",
        .long_name = NULL_IF_CONFIG_SMALL("vcfilter neural video"),
        .props     = AV_CODEC_PROP_LOSSY,
    },
'
insert libavcodec/allcodecs.c after 'ff_libtwolame_encoder;' \
    'extern const FFCodec ff_libvcfilter_encoder;
extern const FFCodec ff_libvcfilter_decoder;'
insert libavcodec/bitstream_filters.c after 'ff_vp9_superframe_split_bsf;' \
    'extern const FFBitStreamFilter ff_vcfilter_thin_bsf;'
insert libavcodec/Makefile after 'OBJS-$(CONFIG_LIBTWOLAME_ENCODER)' \
    'VCFILTER-OBJS = libvcfilter.o vcf_worker.o vcf_pool.o vcf_message.o vcf_stream.o vcf_process.o vcf_sequence.o vcf_thin.o
OBJS-$(CONFIG_LIBVCFILTER_DECODER)        += libvcfilterdec.o $(VCFILTER-OBJS)
OBJS-$(CONFIG_LIBVCFILTER_ENCODER)        += libvcfilterenc.o $(VCFILTER-OBJS)
OBJS-$(CONFIG_VCFILTER_THIN_BSF)          += libvcfilterthin_bsf.o vcf_thin.o vcf_sequence.o'
insert configure after 'libtwolame_encoder_deps="libtwolame"' \
    'libvcfilter_decoder_deps="pthreads"
libvcfilter_encoder_deps="pthreads"'

insert libavformat/riff.c before '{ AV_CODEC_ID_NONE,         0 }' \
    "    { AV_CODEC_ID_VCFILTER,     MKTAG('V', 'C', 'F', '1') },"
