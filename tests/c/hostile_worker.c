/*
 * Runs the client of the codec worker against workers that send random messages, for
 * test_worker.py. Built with sanitizers, it fails on the first access that is wrong.
 *
 *   hostile_worker SOCKET ROUNDS SEED
 *   hostile_worker SOCKET       a round for each seed, a line of standard input; its status is
 *                               written as a line
 *
 * Each round a thread accepts one client on SOCKET, sends a greeting, messages that are mostly
 * plausible, and closes; the client opens a decoder or an encoder meanwhile, sends and receives,
 * and touches every sample it is given. Standard output: how often each status ended a stream, and
 * how many frames and packets were received.
 */
#define _GNU_SOURCE
#include "vcf_internal.h"

#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define WIDTH 32
#define HEIGHT 16
#define SLOT_BYTES (64 * HEIGHT + 2 * 64 * HEIGHT / 2)

static uint64_t state;
static int wild; /* every other value is another one */

static uint32_t chance(uint32_t below)
{
    state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(state >> 33) % below;
}

/* A value, or now and then another one. */
static uint32_t mostly(uint32_t value)
{
    static const uint32_t others[] = {0, 1, 2, 15, 16, 63, 64, 255, 4096, 65536, 0x7FFF0000,
                                      0x7FFFFFFF, 0x80000000, 0xFFFFFFFF};
    return chance(wild ? 2 : 300) ? value : others[chance(sizeof(others) / sizeof(*others))];
}

typedef struct Script {
    uint8_t bytes[1 << 16];
    size_t size;
    size_t stop_at[256]; /* places in the bytes */
    int fd[256];         /* the descriptor that belongs there; -1: the worker waits there for the
                          * client to send, -2: longer */
    int stops;
} Script;

static void add(Script *s, uint32_t kind, const uint8_t *body, size_t size)
{
    uint8_t *p = s->bytes + s->size;
    if (s->size + 12 + size > sizeof(s->bytes))
        return;
    put32(put32(put32(p, mostly((uint32_t)size)), mostly(kind)), mostly(1));
    if (size)
        memcpy(p + 12, body, size);
    s->size += 12 + size;
}

static void add_stop(Script *s, int fd)
{
    if (s->stops == 256)
        abort();
    s->stop_at[s->stops] = s->size;
    s->fd[s->stops++] = fd;
}

static void add_memory(Script *s, int odd)
{
    uint8_t body[32], *p = body;
    uint32_t count = 1 + chance(3);
    int fd = memfd_create("hostile", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0 || ftruncate(fd, (off_t)mostly(count * SLOT_BYTES) & 0xFFFFFF) < 0)
        abort();
    if (chance(20))
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK);
    add_stop(s, fd);
    wild = odd;
    p = put32(put32(p, mostly(count)), mostly(SLOT_BYTES));
    p = put32(put32(p, mostly(0)), mostly(64));
    p = put32(put32(p, mostly(64 * HEIGHT)), mostly(64));
    put32(put32(p, mostly(64 * HEIGHT + 64 * HEIGHT / 2)), mostly(64));
    wild = 0;
    add(s, MEMORY, body, sizeof(body));
}

static void add_format(Script *s)
{
    uint8_t body[FORMAT_BYTES];
    VcfFormat format = {.width = WIDTH, .height = HEIGHT, .bit_depth = chance(20) ? 8 : 10,
                        .sar_den = 1};
    vcf_write_format(body, &format);
    if (!chance(10))
        put32(body + 4 * chance(FORMAT_BYTES / 4), mostly(chance(5000)));
    add(s, FORMAT, body, sizeof(body));
}

static void add_done(Script *s)
{
    uint8_t body[600] = {0};
    put32(put32(put32(body, mostly(0)), mostly(0)), mostly(chance(4)));
    if (!chance(8))
        put32(put32(body + 4, mostly(1)) + 4, mostly((uint32_t)-5));
    add(s, DONE, body, chance(20) ? 16 + chance(80) : chance(16));
}

/* The answer to something that the client sends. */
static void add_answer(Script *s, int encoder)
{
    uint8_t body[600] = {0}, *p = body;
    add_stop(s, -1);
    if (encoder && chance(20))
        add(s, RELEASED, put32(body, mostly(chance(2))) - 4, 4);
    for (uint32_t i = chance(3); i-- > 0; p = body)
        if (encoder) {
            add(s, PACKET, body, chance(20) ? 17 + chance(500) : chance(17));
        } else {
            p = put32(put32(p, mostly(0)), mostly(chance(2)));
            *put64(put64(p, (int64_t)chance(9)), 1) = (uint8_t)mostly(1);
            add(s, FRAME, body, mostly(25) % 600);
        }
    if (chance(20))
        add_done(s);
}

static void add_any(Script *s, int encoder)
{
    uint8_t body[600] = {0};
    switch (chance(60)) {
    case 0:
    case 6:
        add_memory(s, 1); /* a second one is wrong anyway */
        break;
    case 1:
        add_format(s);
        break;
    case 2:
        add(s, DRAINED, put32(body, mostly(chance(2))) - 4, 4);
        break;
    case 3:
        add(s, FAILED, put32(body, mostly((uint32_t)-8)) - 4, chance(600));
        break;
    case 4:
        add(s, ALIVE, NULL, 0);
        break;
    case 5:
        add(s, chance(40), body, chance(600));
        break;
    default:
        add_answer(s, encoder);
    }
}

static void write_script(Script *s, int encoder)
{
    uint8_t body[64] = "VCFW";
    s->size = 0;
    s->stops = 0;
    put32(body + 4, mostly(PROTOCOL_VERSION));
    add(s, WELCOME, body, 8 + chance(56));
    add_stop(s, -2);
    if (!encoder)
        add_format(s);
    add_memory(s, 0);
    put32(body, mostly(1 + chance(3)));
    add(s, OPENED, body, 4 + chance(60));
    for (uint32_t i = chance(60); i-- > 0;)
        add_any(s, encoder);
    if (!chance(10) && s->size)
        s->bytes[chance((uint32_t)s->size)] = (uint8_t)chance(256);
}

/* Sends bytes at once, with some of the descriptors that belong to them, and closes those. */
static void send_bytes(int socket, Script *s, size_t from, size_t to, const int *fd, int count)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(FDS_MAX * sizeof(int))];
    } control;
    struct iovec part = {s->bytes + from, to - from};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    int sent = count < FDS_MAX ? count : FDS_MAX;
    if (sent) {
        struct cmsghdr *c;
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE((size_t)sent * sizeof(int));
        c = CMSG_FIRSTHDR(&message);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN((size_t)sent * sizeof(int));
        memcpy(CMSG_DATA(c), fd, (size_t)sent * sizeof(int));
    }
    if (to > from)
        (void)!sendmsg(socket, &message, MSG_NOSIGNAL);
    for (int i = 0; i < count; i++)
        close(fd[i]);
}

typedef struct Server {
    int listener;
    Script script;
} Server;

static void *serve(void *argument)
{
    Server *server = argument;
    Script *s = &server->script;
    uint8_t ignored[4096];
    size_t at = 0;
    int fd[256], fds = 0;
    int client = accept4(server->listener, NULL, NULL, SOCK_CLOEXEC);
    (void)!recv(client, ignored, 20, MSG_WAITALL); /* HELLO */
    for (int i = 0; i < s->stops; i++) {
        struct pollfd ready = {.fd = client, .events = POLLIN};
        if (s->fd[i] >= 0) {
            fd[fds++] = s->fd[i];
            continue;
        }
        send_bytes(client, s, at, s->stop_at[i], fd, fds);
        at = s->stop_at[i];
        fds = 0;
        if (poll(&ready, 1, s->fd[i] == -1 ? 3 : 500) > 0)
            (void)!recv(client, ignored, sizeof(ignored), 0);
    }
    send_bytes(client, s, at, s->size, fd, fds);
    shutdown(client, SHUT_WR);
    while (recv(client, ignored, sizeof(ignored), 0) > 0) /* until the client leaves */
        continue;
    close(client);
    return NULL;
}

static uint64_t touched;
static int received;

static int decode(VcfStream *stream)
{
    static const uint8_t data[40];
    const VcfPacket packet = {.data = data, .size = sizeof(data), .key = 1};
    VcfFrame frame;
    VcfFormat format;
    int status = VCF_OK;
    for (int i = 0; i < 400; i++) {
        status = vcf_receive_frame(stream, &frame);
        if (status == VCF_OK) {
            received++;
            vcf_format(stream, &format);
            for (int plane = 0; plane < 3; plane++) {
                size_t bytes, rows;
                vcf_plane_size(&format, plane, &bytes, &rows);
                for (size_t y = 0; y < rows; y++)
                    for (size_t x = 0; x < bytes; x++)
                        touched += frame.data[plane][y * (size_t)frame.linesize[plane] + x];
            }
        } else if (status < 0 && status != VCF_INVALID && status != VCF_OPTION) {
            return status;
        } else if (!chance(12)) {
            status = vcf_flush(stream);
        } else {
            status = vcf_send_packet(stream, chance(12) ? &packet : NULL);
        }
        if (status < 0 && status != VCF_INVALID && status != VCF_OPTION)
            return status;
    }
    return status;
}

static int encode(VcfStream *stream)
{
    static const uint8_t plane[2 * WIDTH * HEIGHT];
    const VcfFrame frame = {.data = {plane, plane, plane}, .linesize = {WIDTH, WIDTH / 2, WIDTH / 2}};
    VcfPacket packet;
    int status = VCF_OK;
    for (int i = 0; i < 400; i++) {
        status = vcf_receive_packet(stream, &packet);
        if (status == VCF_OK) {
            received++;
            for (size_t n = 0; n < packet.size; n++)
                touched += packet.data[n];
        } else if (status >= 0) {
            status = vcf_send_frame(stream, chance(12) ? &frame : NULL);
        }
        if (status < 0 && status != VCF_INVALID && status != VCF_OPTION)
            return status;
    }
    return status;
}

/* One round: how the stream ended. */
static int play(Server *server, const VcfWorkerOptions *options)
{
    const VcfFormat format = {.width = WIDTH, .height = HEIGHT, .bit_depth = 8, .sar_den = 1};
    int encoder = chance(2), status;
    VcfStream *stream;
    pthread_t thread;
    write_script(&server->script, encoder);
    if (pthread_create(&thread, NULL, serve, server))
        abort();
    status = encoder ? vcf_open_encoder(&stream, options, &format, "")
                     : vcf_open_decoder(&stream, options, NULL, 0);
    if (status == VCF_OK)
        status = encoder ? encode(stream) : decode(stream);
    vcf_close(&stream);
    pthread_join(thread, NULL);
    return status;
}

int main(int argc, char **argv)
{
    static Server server;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    VcfWorkerOptions options = {.command = "exit 1", .timeout_ms = 20000};
    int counts[16] = {0};
    if ((argc != 2 && argc != 4) || strlen(argv[1]) >= sizeof(address.sun_path))
        return 2;
    options.socket = argv[1];
    strcpy(address.sun_path, argv[1]);
    server.listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(server.listener, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        listen(server.listener, 4) < 0)
        return 3;
    if (argc == 2) {
        while (scanf("%" SCNu64, &state) == 1) {
            printf("%d\n", play(&server, &options));
            fflush(stdout);
        }
        close(server.listener);
        return 0;
    }
    state = strtoull(argv[3], NULL, 10);
    for (int round = atoi(argv[2]); round-- > 0;) {
        int status = play(&server, &options);
        counts[status < 0 && status > -16 ? -status : 0]++;
    }
    close(server.listener);
    for (int i = 0; i < 16; i++)
        if (counts[i])
            printf("status %d: %d\n", -i, counts[i]);
    printf("received %d\n", received);
    fprintf(stderr, "%s", touched == 1 ? " " : ""); /* the samples were looked at */
    return 0;
}
