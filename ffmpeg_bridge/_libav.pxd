# The part of FFmpeg's public API that the bridge uses, and compat.h.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "compat.h" nogil:
    int AVERROR_EOF, AVERROR_EXIT, AVERROR_INVALIDDATA, AVERROR_EXTERNAL
    int AVERROR_PATCHWELCOME
    int AVERROR(int code)
    int64_t AV_NOPTS_VALUE
    int AV_TIME_BASE
    int AV_INPUT_BUFFER_PADDING_SIZE
    int AV_PKT_FLAG_KEY, AV_PKT_FLAG_DISCARD
    int AV_PKT_DATA_DISPLAYMATRIX, AV_PKT_DATA_NB
    int AVFMT_NOFILE, AVFMT_TS_DISCONT, AVFMT_TS_NONSTRICT
    int AVIO_FLAG_READ, AVIO_FLAG_WRITE, AVIO_SEEKABLE_NORMAL, AVSEEK_SIZE, AVSEEK_FORCE, AVSEEK_FLAG_BACKWARD
    int FF_COMPLIANCE_EXPERIMENTAL
    int AV_DICT_IGNORE_SUFFIX
    int AVMEDIA_TYPE_VIDEO, AVMEDIA_TYPE_AUDIO, AVMEDIA_TYPE_SUBTITLE
    int AVMEDIA_TYPE_ATTACHMENT, AVMEDIA_TYPE_DATA
    int AV_CODEC_ID_NONE
    int AV_PIX_FMT_NONE, AV_SAMPLE_FMT_NONE


    ctypedef struct AVRational:
        int num
        int den

    ctypedef struct AVDictionary:
        pass
    ctypedef struct AVDictionaryEntry:
        char *key
        char *value

    ctypedef struct AVChannelLayout:
        int nb_channels

    ctypedef struct AVPacketSideData:
        uint8_t *data
        size_t size
        int type

    ctypedef struct AVCodecParameters:
        int codec_type
        int codec_id
        uint32_t codec_tag
        uint8_t *extradata
        int extradata_size
        int format
        int64_t bit_rate
        int bits_per_coded_sample
        int bits_per_raw_sample
        int profile
        int level
        int width
        int height
        AVRational sample_aspect_ratio
        int field_order
        int color_range
        int color_primaries
        int color_trc
        int color_space
        int chroma_location
        int video_delay
        int sample_rate
        int block_align
        int frame_size
        int initial_padding
        int trailing_padding
        int seek_preroll
        AVChannelLayout ch_layout

    ctypedef struct AVCodecDescriptor:
        int id
        const char *name

    ctypedef struct AVPacket:
        int64_t pts
        int64_t dts
        uint8_t *data
        int size
        int stream_index
        int flags
        AVPacketSideData *side_data
        int side_data_elems
        int64_t duration

    ctypedef struct AVStream:
        int index
        int id
        int64_t nb_frames
        AVRational r_frame_rate
        AVCodecParameters *codecpar
        AVRational time_base
        int64_t start_time
        int64_t duration
        int disposition
        AVRational sample_aspect_ratio
        AVDictionary *metadata
        AVRational avg_frame_rate
        AVPacket attached_pic

    ctypedef struct AVChapter:
        int64_t id
        AVRational time_base
        int64_t start
        int64_t end
        AVDictionary *metadata

    ctypedef struct AVIOContext:
        unsigned char *buffer
        int error
        int seekable

    ctypedef struct AVIOInterruptCB:
        int (*callback)(void *) noexcept
        void *opaque

    ctypedef struct AVCodecTag:
        pass
    ctypedef struct AVInputFormat:
        const char *name
        int flags
    ctypedef struct AVOutputFormat:
        const char *name
        int flags
        const AVCodecTag **codec_tag

    ctypedef struct AVFormatContext:
        const AVInputFormat *iformat
        const AVOutputFormat *oformat
        AVIOContext *pb
        unsigned int nb_streams
        AVStream **streams
        unsigned int nb_chapters
        AVChapter **chapters
        int64_t start_time
        int64_t duration
        int64_t bit_rate
        AVDictionary *metadata
        AVIOInterruptCB interrupt_callback

    int av_strerror(int code, char *buffer, size_t size)
    void *av_malloc(size_t size)
    void *av_mallocz(size_t size)
    void av_free(void *pointer)
    void av_freep(void *pointer)

    int64_t av_rescale_q(int64_t value, AVRational source, AVRational target)
    AVDictionaryEntry *av_dict_get(
        const AVDictionary *d, const char *key, const AVDictionaryEntry *prev, int flags)
    int av_dict_set(AVDictionary **d, const char *key, const char *value, int flags)
    void av_dict_free(AVDictionary **d)

    const char *av_get_pix_fmt_name(int format)
    int av_get_pix_fmt(const char *name)
    const char *av_get_sample_fmt_name(int format)
    int av_get_sample_fmt(const char *name)
    void av_display_rotation_set(int32_t *matrix, double angle)

    const AVCodecDescriptor *avcodec_descriptor_get(int id)
    const AVCodecDescriptor *avcodec_descriptor_get_by_name(const char *name)

    AVPacket *av_packet_alloc()
    void av_packet_free(AVPacket **packet)
    void av_packet_unref(AVPacket *packet)
    int av_new_packet(AVPacket *packet, int size)
    uint8_t *av_packet_new_side_data(AVPacket *packet, int type, size_t size)
    const char *av_packet_side_data_name(int type)
    void av_packet_rescale_ts(AVPacket *packet, AVRational source, AVRational target)

    unsigned int avformat_version()
    const AVInputFormat *av_demuxer_iterate(void **opaque)
    const AVInputFormat *av_find_input_format(const char *name)
    const AVOutputFormat *av_guess_format(const char *name, const char *file, const char *mime)
    int avformat_query_codec(const AVOutputFormat *format, int id, int compliance)
    int av_codec_get_id(const AVCodecTag *const *tags, unsigned int tag)
    int av_codec_get_tag2(const AVCodecTag *const *tags, int id, unsigned int *tag)

    AVFormatContext *avformat_alloc_context()
    void avformat_free_context(AVFormatContext *context)
    int avformat_open_input(
        AVFormatContext **context, const char *url, const AVInputFormat *format,
        AVDictionary **options)
    int avformat_find_stream_info(AVFormatContext *context, AVDictionary **options)
    void avformat_close_input(AVFormatContext **context)
    int av_read_frame(AVFormatContext *context, AVPacket *packet)
    int av_seek_frame(AVFormatContext *context, int index, int64_t timestamp, int flags)

    int avformat_alloc_output_context2(
        AVFormatContext **context, const AVOutputFormat *format, const char *name,
        const char *file)
    AVStream *avformat_new_stream(AVFormatContext *context, const void *codec)
    int avformat_write_header(AVFormatContext *context, AVDictionary **options)
    int av_write_frame(AVFormatContext *context, AVPacket *packet)
    int av_interleaved_write_frame(AVFormatContext *context, AVPacket *packet)
    int av_write_trailer(AVFormatContext *context)

    int avio_open2(
        AVIOContext **io, const char *url, int flags, const AVIOInterruptCB *interrupt,
        AVDictionary **options)
    int avio_closep(AVIOContext **io)
    int avio_open_dyn_buf(AVIOContext **io)
    int avio_close_dyn_buf(AVIOContext *io, uint8_t **buffer)
    void avio_flush(AVIOContext *io)
    int64_t avio_size(AVIOContext *io)
    void avio_context_free(AVIOContext **io)

    # compat.h
    ctypedef uint8_t bridge_write_buffer
    AVIOContext *bridge_avio_alloc(
        unsigned char *buffer, int size, int writable, int seekable, void *opaque,
        int (*read)(void *, uint8_t *, int) noexcept,
        int (*write)(void *, bridge_write_buffer *, int) noexcept,
        int64_t (*seek)(void *, int64_t, int) noexcept)
    int bridge_stream_nb_side_data(const AVStream *stream)
    const AVPacketSideData *bridge_stream_side_data(const AVStream *stream, int index)
    uint8_t *bridge_stream_new_side_data(AVStream *stream, int type, size_t size)
    int bridge_set_channel_layout(AVCodecParameters *par, uint64_t mask, int channels)
    uint64_t bridge_channel_mask(const AVCodecParameters *par)
    AVChapter *bridge_new_chapter(AVFormatContext *context)
    void bridge_log_install()
    void bridge_log_clear()
    const char *bridge_log_last()
