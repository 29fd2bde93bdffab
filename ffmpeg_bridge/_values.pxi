# Between Python's values and libav's structures.

cdef str text(const char *string):
    return "" if string == NULL else (<bytes>string).decode("utf-8", "replace")


cdef object error(int code, str name, bint with_log=True):
    """The exception for libav's error code."""
    cdef char buffer[256]
    buffer[0] = 0
    av_strerror(code, buffer, sizeof(buffer))
    message = text(buffer)
    if with_log:
        line = text(bridge_log_last())
        if line and line != message:
            message = f"{message} ({line})"
    if code == AVERROR_INVALIDDATA:
        return InvalidDataError(_errno.EINVAL, message, name)
    number = -code if 0 < -code < 4096 else _errno.EINVAL
    return ERROR_CLASSES.get(number, BridgeError)(number, message, name)


cdef object to_fraction(AVRational value):
    """None where the value is undefined (0/0 or n/0) or zero."""
    return Fraction(value.num, value.den) if value.num and value.den else None


cdef AVRational to_rational(object value, str what) except *:
    cdef AVRational result
    result.num, result.den = 0, 1
    if value is not None:
        value = Fraction(value)
        if not (-2**31 < value.numerator < 2**31 and value.denominator < 2**31):
            raise ValueError(f"{what} {value} does not fit in 31 bits over 31 bits")
        result.num, result.den = value.numerator, value.denominator
    return result


cdef object to_ticks(int64_t value):
    return None if value == AV_NOPTS_VALUE else value


cdef int64_t from_ticks(object value) except? -1:
    return AV_NOPTS_VALUE if value is None else value


cdef dict to_dict(const AVDictionary *dictionary):
    result = {}
    cdef AVDictionaryEntry *entry = av_dict_get(dictionary, "", NULL, AV_DICT_IGNORE_SUFFIX)
    while entry != NULL:
        result[text(entry.key)] = text(entry.value)
        entry = av_dict_get(dictionary, "", entry, AV_DICT_IGNORE_SUFFIX)
    return result


cdef int set_dict(AVDictionary **dictionary, object values) except -1:
    for key, value in values.items():
        if av_dict_set(dictionary, key.encode(), str(value).encode("utf-8", "replace"), 0) < 0:
            raise MemoryError
    return 0


cdef str tag_text(uint32_t tag):
    return tag.to_bytes(4, "little").decode("latin-1") if tag else ""


cdef uint32_t tag_number(str tag) except? 0:
    data = tag.encode("latin-1")
    if len(data) not in (0, 4):
        raise ValueError(f"codec tag {tag!r} does not have 4 characters")
    return int.from_bytes(data, "little")


cdef int codec_id(str name) except -1:
    if not name:
        return AV_CODEC_ID_NONE
    cdef const AVCodecDescriptor *descriptor = avcodec_descriptor_get_by_name(name.encode())
    if descriptor == NULL:
        raise BridgeError(_errno.EINVAL, f"this FFmpeg knows no codec named {name!r}")
    return descriptor.id


cdef str codec_name(int codec):
    cdef const AVCodecDescriptor *descriptor = avcodec_descriptor_get(codec)
    return "" if descriptor == NULL or codec == AV_CODEC_ID_NONE else text(descriptor.name)


cdef dict side_data_types():
    cdef const char *name
    result = {}
    for number in range(AV_PKT_DATA_NB):
        name = av_packet_side_data_name(number)
        if name != NULL:
            result[text(name)] = number
    return result


cdef dict SIDE_DATA = side_data_types()
cdef dict SIDE_DATA_NAMES = {number: name for name, number in SIDE_DATA.items()}


cdef StreamInfo_of(AVStream *stream):
    """Everything libavformat knows of a stream, by value."""
    cdef AVCodecParameters *par = stream.codecpar
    cdef const AVPacketSideData *entry
    cdef int i
    cdef AVRational aspect = stream.sample_aspect_ratio
    if not aspect.num or not aspect.den:
        aspect = par.sample_aspect_ratio
    is_video = par.codec_type == AVMEDIA_TYPE_VIDEO
    is_audio = par.codec_type == AVMEDIA_TYPE_AUDIO
    metadata = to_dict(stream.metadata)
    rotation, mirrored, side_data, has_matrix = 0, False, [], False
    for i in range(bridge_stream_nb_side_data(stream)):
        entry = bridge_stream_side_data(stream, i)
        if entry.type not in SIDE_DATA_NAMES:
            continue
        side_data.append((SIDE_DATA_NAMES[entry.type], (<char *>entry.data)[:entry.size]))
        if entry.type == AV_PKT_DATA_DISPLAYMATRIX and entry.size >= 36:
            rotation, mirrored = orientation(<const int32_t *>entry.data)
            has_matrix = True
    for key in [key for key in metadata if key.lower() == "rotate"]:
        tagged = metadata.pop(key)
        if not has_matrix and is_video and tagged in ("90", "180", "270"):
            rotation = int(tagged)
    return StreamInfo(
        kind=KIND_NAMES.get(par.codec_type, "data"),
        codec=codec_name(par.codec_id),
        codec_tag=tag_text(par.codec_tag),
        index=stream.index,
        extradata=(<char *>par.extradata)[:par.extradata_size] if par.extradata != NULL else b"",
        time_base=to_fraction(stream.time_base) or Fraction(1, 1000),
        start_time=to_ticks(stream.start_time),
        duration=to_ticks(stream.duration),
        id=stream.id,
        frames=stream.nb_frames,
        disposition=stream.disposition,
        metadata=metadata,
        width=par.width,
        height=par.height,
        sample_aspect_ratio=to_fraction(aspect),
        frame_rate=to_fraction(stream.avg_frame_rate),
        base_rate=to_fraction(stream.r_frame_rate),
        pixel_format=text(av_get_pix_fmt_name(par.format)) if is_video else "",
        color_primaries=par.color_primaries,
        color_trc=par.color_trc,
        colorspace=par.color_space,
        color_range=par.color_range,
        chroma_location=par.chroma_location,
        rotation=rotation,
        mirrored=mirrored,
        field_order=par.field_order,
        video_delay=par.video_delay,
        sample_rate=par.sample_rate,
        channels=par.ch_layout.nb_channels,
        channel_layout=bridge_channel_mask(par),
        sample_format=text(av_get_sample_fmt_name(par.format)) if is_audio else "",
        frame_size=par.frame_size,
        initial_padding=par.initial_padding,
        trailing_padding=par.trailing_padding,
        seek_preroll=par.seek_preroll,
        bits_per_coded_sample=par.bits_per_coded_sample,
        bits_per_raw_sample=par.bits_per_raw_sample,
        block_align=par.block_align,
        profile=par.profile,
        level=par.level,
        bit_rate=par.bit_rate,
        side_data=tuple(side_data),
        attached_picture=(
            (<char *>stream.attached_pic.data)[:stream.attached_pic.size]
            if stream.attached_pic.data != NULL
            else b""
        ),
    )


cdef int fill_stream(AVStream *stream, const AVOutputFormat *container, info) except -1:
    """Write a StreamInfo into a new stream of the container."""
    cdef AVCodecParameters *par = stream.codecpar
    cdef unsigned int ignored = 0
    cdef uint8_t *target
    if info.kind not in KINDS:
        raise ValueError(f"stream kind {info.kind!r} is not one of {', '.join(KINDS)}")
    for field in ("width", "height", "sample_rate", "channels", "bit_rate"):
        if getattr(info, field) < 0:
            raise ValueError(f"stream {field} {getattr(info, field)} is negative")
    par.codec_type = KINDS[info.kind]
    par.codec_id = codec_id(info.codec)
    # A tag of the source's container means something else, or nothing, in another one.
    tag = tag_number(info.codec_tag)
    if (
        par.codec_id == AV_CODEC_ID_NONE
        or container.codec_tag == NULL
        or av_codec_get_id(container.codec_tag, tag) == par.codec_id
        or not av_codec_get_tag2(container.codec_tag, par.codec_id, &ignored)
    ):
        par.codec_tag = tag
    extradata = bytes(info.extradata)
    if extradata:
        if len(extradata) > 2**31 - 1 - AV_INPUT_BUFFER_PADDING_SIZE:
            raise ValueError(f"extradata has {len(extradata)} bytes: more than 2 GiB")
        par.extradata = <uint8_t *>av_mallocz(len(extradata) + AV_INPUT_BUFFER_PADDING_SIZE)
        if par.extradata == NULL:
            raise MemoryError
        memcpy(par.extradata, <const char *>extradata, len(extradata))
        par.extradata_size = len(extradata)
    par.bit_rate = info.bit_rate
    par.bits_per_coded_sample = info.bits_per_coded_sample
    par.bits_per_raw_sample = info.bits_per_raw_sample
    par.profile = info.profile
    par.level = info.level
    par.width = info.width
    par.height = info.height
    if info.kind == "video":
        par.sample_aspect_ratio = to_rational(info.sample_aspect_ratio, "sample aspect ratio")
        stream.sample_aspect_ratio = par.sample_aspect_ratio
        par.field_order = info.field_order
        par.color_range = info.color_range
        par.color_primaries = info.color_primaries
        par.color_trc = info.color_trc
        par.color_space = info.colorspace
        par.chroma_location = info.chroma_location
        par.video_delay = info.video_delay
        par.format = AV_PIX_FMT_NONE
        if info.pixel_format:
            par.format = av_get_pix_fmt(info.pixel_format.encode())
        stream.avg_frame_rate = to_rational(info.frame_rate, "frame rate")
    elif info.kind == "audio":
        par.format = AV_SAMPLE_FMT_NONE
        if info.sample_format:
            par.format = av_get_sample_fmt(info.sample_format.encode())
        par.sample_rate = info.sample_rate
        par.block_align = info.block_align
        par.frame_size = info.frame_size
        par.initial_padding = info.initial_padding
        par.trailing_padding = info.trailing_padding
        par.seek_preroll = info.seek_preroll
        if bridge_set_channel_layout(par, info.channel_layout, info.channels) < 0:
            raise ValueError(f"channel layout {info.channel_layout:#x} is no speaker mask")
    stream.time_base = to_rational(info.time_base, "time base")
    stream.disposition = info.disposition
    if info.duration is not None:
        stream.duration = info.duration
    side_data = list(info.side_data)
    metadata = dict(info.metadata)
    if info.kind == "attachment":  # Matroska's muxer insists on both
        metadata.setdefault("filename", f"attachment{stream.index}")
        metadata.setdefault("mimetype", "application/octet-stream")
    if info.rotation or info.mirrored:
        if not any(name == "Display Matrix" for name, _ in side_data):
            side_data.append(("Display Matrix", display_matrix(info.rotation, info.mirrored)))
        if ROTATE_TAG and not info.mirrored and text(container.name) in ("matroska", "webm"):
            metadata["rotate"] = str(info.rotation)
    for name, data in side_data:
        if name not in SIDE_DATA:
            continue
        target = bridge_stream_new_side_data(stream, SIDE_DATA[name], len(data))
        if target == NULL:
            raise MemoryError
        memcpy(target, <const char *>data, len(data))
    set_dict(&stream.metadata, metadata)
    return 0


cdef tuple orientation(const int32_t *matrix):
    """(clockwise degrees, whether mirrored left to right before that) of a display matrix."""
    cdef double a = matrix[0], b = matrix[1], c = matrix[3], d = matrix[4]
    cdef bint mirrored = a * d - b * c < 0
    if not (a or b) or not (c or d):
        return 0, False  # it shows nothing: taken as none
    if mirrored:  # its first row is that of the rotation, negated
        a, b = -a, -b
    return round(math.degrees(math.atan2(b, a))) % 360, mirrored


cdef bytes display_matrix(double clockwise, bint mirrored):
    cdef int32_t matrix[9]
    av_display_rotation_set(matrix, clockwise)
    if mirrored:
        matrix[0], matrix[1] = -matrix[0], -matrix[1]
    return (<char *>matrix)[:sizeof(matrix)]
