/*
 * Drives the client of the codec worker (ffmpeg_bridge/ffmpeg/vcf_worker.h) for test_worker.py.
 *
 *   worker_client [-t MS] [-x] COMMAND ...
 *     decode PACKETS            a line per frame: pts, duration, key, format, hash of the samples
 *     encode FRAMES SETTINGS    packets to standard output, in the form of PACKETS
 *     seek PACKETS COUNT        COUNT packets, a flush, then all of them as decode does
 *     hold PACKETS              one frame and "ready"; after a line on standard input the rest
 *     opens PACKETS COUNT       a stream opened and closed so often; -k: one stays open beside, and
 *                               each report waits for a line on standard input
 *     threads PACKETS COUNT     so many decoders at once in as many threads, one hash line each
 *     next PACKETS              decode, which fails, and once more
 *   -t: time limit; -x: without extradata; -k: see opens; -n: opens decodes nothing
 *
 * PACKETS: u32 size and bytes of the extradata, then per packet i64 pts, i64 duration, u8 key, u32
 * size, bytes. FRAMES: a VcfFormat, 26 numbers of 32 bits, then per frame i64 pts, i64 duration, u8
 * key and the planes without gaps. In the machine's own byte order, which is the test's.
 */
#define _GNU_SOURCE
#include "vcf_worker.h"

#include <dirent.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct Input {
    uint8_t *data;
    size_t size, at;
} Input;

static VcfWorkerOptions options;
static int without_extradata, keep_one, no_frames;

static void give_up(const char *what)
{
    fprintf(stderr, "worker_client: %s\n", what);
    exit(3);
}

static Input read_whole(const char *name)
{
    Input input = {0};
    FILE *file = fopen(name, "rb");
    if (!file || fseek(file, 0, SEEK_END))
        give_up(name);
    input.size = (size_t)ftell(file);
    input.data = malloc(input.size + 1);
    rewind(file);
    if (!input.data || fread(input.data, 1, input.size, file) != input.size)
        give_up(name);
    fclose(file);
    return input;
}

static const uint8_t *take(Input *input, size_t size)
{
    const uint8_t *found = input->data + input->at;
    if (size > input->size - input->at)
        give_up("the input is cut short");
    input->at += size;
    return found;
}

static int64_t take_number(Input *input, size_t size)
{
    int64_t value = 0;
    memcpy(&value, take(input, size), size);
    return value;
}

static int next_packet(Input *input, VcfPacket *packet)
{
    if (input->at == input->size)
        return 0;
    packet->pts = take_number(input, 8);
    packet->duration = take_number(input, 8);
    packet->key = (int)take_number(input, 1);
    packet->size = (size_t)take_number(input, 4);
    packet->data = take(input, packet->size);
    return 1;
}

static uint64_t hash_plane(uint64_t hash, const VcfFrame *frame, int plane, const VcfFormat *format)
{
    int half = plane > 0;
    size_t bytes = (size_t)((format->width + half) >> half) * (format->bit_depth > 8 ? 2 : 1);
    for (int y = 0; y < (format->height + half) >> half; y++)
        for (size_t x = 0; x < bytes; x++)
            hash = (hash ^ frame->data[plane][(ptrdiff_t)y * frame->linesize[plane] + (ptrdiff_t)x]) *
                   UINT64_C(1099511628211);
    return hash;
}

static void describe(FILE *out, VcfStream *stream, const VcfFrame *frame)
{
    VcfFormat f;
    uint64_t hash = UINT64_C(14695981039346656037);
    vcf_format(stream, &f);
    for (int plane = 0; plane < 3; plane++)
        hash = hash_plane(hash, frame, plane, &f);
    fprintf(out, "frame %" PRId64 " %" PRId64 " %d %dx%d %d %d/%d %d %d %d %d %d %d %d %d %u",
            frame->pts, frame->duration, frame->key + 2 * frame->corrupt, f.width, f.height,
            f.bit_depth, f.sar_num, f.sar_den, f.color_primaries, f.color_trc, f.color_space,
            f.color_range, f.chroma_location, f.rotation, f.mirrored, f.field_order, f.known);
    for (int i = 0; i < 3; i++)
        fprintf(out, " %u %u", (unsigned)f.primaries[i][0], (unsigned)f.primaries[i][1]);
    fprintf(out, " %u %u %u %u %u %u %016" PRIx64 "\n", (unsigned)f.white_point[0],
            (unsigned)f.white_point[1], (unsigned)f.luminance[0], (unsigned)f.luminance[1],
            (unsigned)f.max_content, (unsigned)f.max_average, hash);
    fflush(out);
}

static int say(FILE *out, int status, const char *message)
{
    fprintf(out, "error %d %s\n", status, message);
    fflush(out);
    return status;
}

static VcfStream *open_decoder(FILE *out, Input *input)
{
    VcfStream *stream;
    size_t size;
    const uint8_t *extradata;
    int status;
    input->at = 0;
    size = (size_t)take_number(input, 4);
    extradata = take(input, size);
    if (without_extradata)
        size = 0;
    status = vcf_open_decoder(&stream, &options, size ? extradata : NULL, size);
    if (status != VCF_OK)
        say(out, status, vcf_message(NULL));
    return stream;
}

/* Decodes to the end; the last status: VCF_END, or what is final. */
static int decode_all(FILE *out, VcfStream *stream, Input *input)
{
    VcfPacket packet;
    VcfFrame frame;
    int pending = 0, ended = 0, status;
    for (;;) {
        status = vcf_receive_frame(stream, &frame);
        if (status == VCF_OK) {
            describe(out, stream, &frame);
        } else if (status == VCF_INVALID) {
            say(out, status, vcf_message(stream));
        } else if (status == VCF_AGAIN) {
            if (!pending)
                ended = !next_packet(input, &packet);
            pending = 1;
            status = vcf_send_packet(stream, ended ? NULL : &packet);
            if (status == VCF_AGAIN)
                give_up("neither sending nor receiving goes on");
            if (status < 0)
                return say(out, status, vcf_message(stream));
            pending = 0;
        } else if (status == VCF_END) {
            return status;
        } else {
            return say(out, status, vcf_message(stream));
        }
    }
}

static int decode(FILE *out, Input *input)
{
    VcfStream *stream = open_decoder(out, input);
    int status;
    if (!stream)
        return 1;
    status = decode_all(out, stream, input);
    vcf_close(&stream);
    return status != VCF_END;
}

static int encode(Input *input, const char *settings)
{
    VcfFormat format;
    VcfStream *stream;
    VcfFrame frame;
    VcfPacket packet;
    const uint8_t *extradata;
    size_t size, bytes, chroma;
    uint32_t size32;
    int status, pending = 0, ended = 0;
    memcpy(&format, take(input, sizeof(format)), sizeof(format));
    bytes = format.bit_depth > 8 ? 2 : 1;
    chroma = (size_t)((format.width + 1) / 2) * (size_t)((format.height + 1) / 2) * bytes;
    status = vcf_open_encoder(&stream, &options, &format, settings);
    if (status != VCF_OK)
        return say(stderr, status, vcf_message(NULL));
    vcf_extradata(stream, &extradata, &size);
    size32 = (uint32_t)size;
    fwrite(&size32, 4, 1, stdout);
    fwrite(extradata, 1, size, stdout);
    for (;;) {
        status = vcf_receive_packet(stream, &packet);
        if (status == VCF_OK) {
            uint8_t key = (uint8_t)packet.key;
            size32 = (uint32_t)packet.size;
            fwrite(&packet.pts, 8, 1, stdout);
            fwrite(&packet.duration, 8, 1, stdout);
            fwrite(&key, 1, 1, stdout);
            fwrite(&size32, 4, 1, stdout);
            fwrite(packet.data, 1, packet.size, stdout);
        } else if (status == VCF_AGAIN) {
            if (!pending && !(ended = input->at == input->size)) {
                frame.pts = take_number(input, 8);
                frame.duration = take_number(input, 8);
                frame.key = (int)take_number(input, 1);
                frame.linesize[0] = format.width * (int)bytes;
                frame.linesize[1] = frame.linesize[2] = (format.width + 1) / 2 * (int)bytes;
                frame.data[0] = take(input, (size_t)format.width * (size_t)format.height * bytes);
                frame.data[1] = take(input, chroma);
                frame.data[2] = take(input, chroma);
            }
            pending = 1;
            status = vcf_send_frame(stream, ended ? NULL : &frame);
            if (status == VCF_AGAIN)
                give_up("neither sending nor receiving goes on");
            if (status < 0)
                return say(stderr, status, vcf_message(stream));
            pending = 0;
        } else if (status == VCF_END) {
            break;
        } else {
            say(stderr, status, vcf_message(stream));
            if (status != VCF_OPTION)
                return 1;
        }
    }
    vcf_close(&stream);
    return 0;
}

static int seek(Input *input, int count)
{
    VcfStream *stream = open_decoder(stdout, input);
    size_t start = input->at;
    VcfPacket packet;
    VcfFrame frame;
    int status = 1;
    if (!stream)
        return 1;
    for (int i = 0; i < count && next_packet(input, &packet); i++)
        while (vcf_send_packet(stream, &packet) == VCF_AGAIN)
            vcf_receive_frame(stream, &frame);
    if (vcf_flush(stream) == VCF_OK) {
        input->at = start;
        status = decode_all(stdout, stream, input) != VCF_END;
        input->at = start; /* the end was no end: another sequence may follow */
        status |= decode_all(stdout, stream, input) != VCF_END;
    }
    vcf_close(&stream);
    return status;
}

static int hold(Input *input)
{
    VcfStream *stream = open_decoder(stdout, input);
    VcfPacket packet;
    VcfFrame frame;
    if (!stream)
        return 1;
    while (vcf_receive_frame(stream, &frame) != VCF_OK)
        if (!next_packet(input, &packet) || vcf_send_packet(stream, &packet) != VCF_OK)
            give_up("no frame came");
    printf("ready\n");
    fflush(stdout);
    if (getchar() == EOF) /* then goes on as if nothing had happened */
        return 0;
    return decode_all(stdout, stream, input) != VCF_END;
}

static int descriptors(void)
{
    DIR *folder = opendir("/proc/self/fd");
    int count = 0;
    while (readdir(folder))
        count++;
    closedir(folder);
    return count;
}

static long resident_kib(void)
{
    long size, resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (!file || fscanf(file, "%ld %ld", &size, &resident) != 2)
        give_up("/proc/self/statm");
    fclose(file);
    return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

static int opens(Input *input, int count)
{
    VcfStream *kept = keep_one ? open_decoder(stdout, input) : NULL;
    if (keep_one && !kept)
        return 1;
    for (int i = 0; i < count; i++) {
        VcfStream *stream = open_decoder(stdout, input);
        VcfPacket packet;
        VcfFrame frame;
        if (!stream)
            return 1;
        while (!no_frames && vcf_receive_frame(stream, &frame) != VCF_OK)
            if (!next_packet(input, &packet) || vcf_send_packet(stream, &packet) != VCF_OK)
                give_up("no frame came");
        vcf_close(&stream);
        if (i == count / 10 || i == count - 1) {
            printf("opens %d %d %ld\n", i + 1, descriptors(), resident_kib());
            fflush(stdout);
            if (keep_one && getchar() == EOF)
                return 1;
        }
    }
    vcf_close(&kept);
    return 0;
}

typedef struct Job {
    pthread_t thread;
    Input input;
    char *text;
    size_t size;
    int status;
} Job;

static void *work(void *argument)
{
    Job *job = argument;
    FILE *out = open_memstream(&job->text, &job->size);
    job->status = decode(out, &job->input);
    fclose(out);
    return NULL;
}

static int threads(Input *input, int count)
{
    Job *jobs = calloc((size_t)count, sizeof(*jobs));
    int status = 0;
    for (int i = 0; i < count; i++) {
        jobs[i].input = *input;
        pthread_create(&jobs[i].thread, NULL, work, &jobs[i]);
    }
    for (int i = 0; i < count; i++) {
        pthread_join(jobs[i].thread, NULL);
        printf("thread %d\n%s", i, jobs[i].text);
        status |= jobs[i].status;
        free(jobs[i].text);
    }
    free(jobs);
    return status;
}

int main(int argc, char **argv)
{
    int option, status = 3;
    const char *command;
    Input input;
    while ((option = getopt(argc, argv, "+t:xkn")) != -1) {
        if (option == 't')
            options.timeout_ms = atoi(optarg);
        else if (option == 'x')
            without_extradata = 1;
        else if (option == 'k')
            keep_one = 1;
        else if (option == 'n')
            no_frames = 1;
        else
            return 2;
    }
    if (argc - optind < 2)
        return 2;
    command = argv[optind];
    input = read_whole(argv[optind + 1]);
    if (!strcmp(command, "decode"))
        status = decode(stdout, &input);
    else if (!strcmp(command, "encode") && argc - optind == 3)
        status = encode(&input, argv[optind + 2]);
    else if (!strcmp(command, "seek") && argc - optind == 3)
        status = seek(&input, atoi(argv[optind + 2]));
    else if (!strcmp(command, "hold"))
        status = hold(&input);
    else if (!strcmp(command, "opens") && argc - optind == 3)
        status = opens(&input, atoi(argv[optind + 2]));
    else if (!strcmp(command, "threads") && argc - optind == 3)
        status = threads(&input, atoi(argv[optind + 2]));
    else if (!strcmp(command, "next"))
        status = decode(stdout, &input) ? decode(stdout, &input) : 3;
    free(input.data);
    return status != 0;
}
