/*
 * What a stream takes from the codec worker's messages: format, memory, frames, packets, errors.
 *
 * Copyright (c) 2026 the vcfilter authors. SPDX-License-Identifier: MIT
 */
#include "vcf_internal.h"
#include "vcf_sequence.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

int vcf_complain(VcfStream *s, int status, const char *text)
{
    if (text != s->message)
        snprintf(s->message, sizeof(s->message), "%s", text);
    return status;
}

static void append(VcfStream *s, Output *output)
{
    output->next = NULL;
    *s->last = output;
    s->last = &output->next;
    s->queued++;
}

static Output *new_output(int status, size_t size)
{
    Output *output = calloc(1, sizeof(*output) + size);
    if (output) {
        output->status = status;
        output->slot = -1;
        output->inputs = 1;
        output->size = size;
    }
    return output;
}

/* The 26 numbers of a format, in the protocol's order. */
static void list_format(VcfFormat *format, void *number[26])
{
    void *const all[] = {
        &format->width,           &format->height,          &format->bit_depth,
        &format->sar_num,         &format->sar_den,         &format->color_primaries,
        &format->color_trc,       &format->color_space,     &format->color_range,
        &format->chroma_location, &format->rotation,        &format->mirrored,
        &format->field_order,     &format->known,           &format->primaries[0][0],
        &format->primaries[0][1], &format->primaries[1][0], &format->primaries[1][1],
        &format->primaries[2][0], &format->primaries[2][1], &format->white_point[0],
        &format->white_point[1],  &format->luminance[0],    &format->luminance[1],
        &format->max_content,     &format->max_average,
    };
    memcpy(number, all, sizeof(all));
}

static int read_format(VcfFormat *format, const uint8_t *p)
{
    void *number[FORMAT_BYTES / 4];
    list_format(format, number);
    for (int i = 0; i < FORMAT_BYTES / 4; i++) {
        uint32_t value = get32(p + 4 * i);
        memcpy(number[i], &value, sizeof(value));
    }
    return vcf_format_allowed(format);
}

void vcf_write_format(uint8_t *p, const VcfFormat *format)
{
    VcfFormat copy = *format;
    void *number[FORMAT_BYTES / 4];
    list_format(&copy, number);
    for (int i = 0; i < FORMAT_BYTES / 4; i++) {
        uint32_t value;
        memcpy(&value, number[i], sizeof(value));
        p = put32(p, value);
    }
}

void vcf_count_sent(VcfStream *s, size_t size)
{
    s->sizes[(s->oldest + (uint32_t)s->unanswered) % UNANSWERED_MAX] = (uint32_t)size;
    s->unanswered++;
    s->unanswered_bytes += size;
}

void vcf_count_answer(VcfStream *s)
{
    s->unanswered_bytes -= s->sizes[s->oldest % UNANSWERED_MAX];
    s->oldest++;
    s->unanswered--;
}

void vcf_forget_sent(VcfStream *s)
{
    s->unanswered = 0;
    s->unanswered_bytes = 0;
}

/* Bytes per row and rows of a plane. */
void vcf_plane_size(const VcfFormat *format, int plane, size_t *bytes, size_t *rows)
{
    int half = plane > 0;
    *bytes = (size_t)((format->width + half) >> half) * (format->bit_depth > 8 ? 2 : 1);
    *rows = (size_t)((format->height + half) >> half);
}

/* Maps shared memory, after a look at whether it holds what it should. 0 if it does not; nothing of
 * the stream has changed then. */
int vcf_map_memory(VcfStream *s, const uint8_t *body, int fd)
{
    const uint32_t count = get32(body);
    const size_t slot_size = get32(body + 4);
    const uint64_t size = (uint64_t)count * slot_size;
    const int seals = fcntl(fd, F_GET_SEALS);
    uint32_t offset[3], row[3];
    struct stat found;
    void *memory;

    if (s->memory || !s->coming_known || !count || count > SLOTS_MAX || fstat(fd, &found) < 0 ||
        seals < 0 || !(seals & F_SEAL_SHRINK) || found.st_size < 0 ||
        size > (uint64_t)found.st_size || size > SIZE_MAX)
        return 0;
    for (int i = 0; i < 3; i++) {
        size_t bytes, rows;
        vcf_plane_size(&s->coming, i, &bytes, &rows);
        offset[i] = get32(body + 8 + 8 * i);
        row[i] = get32(body + 12 + 8 * i);
        if (row[i] < bytes || row[i] > INT32_MAX || offset[i] + (uint64_t)row[i] * rows > slot_size)
            return 0;
    }
    memory = mmap(NULL, (size_t)size, s->encoder ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED,
                  fd, 0);
    if (memory == MAP_FAILED)
        return 0;
    s->memory = memory;
    s->memory_size = (size_t)size;
    s->slot_size = slot_size;
    memcpy(s->offset, offset, sizeof(offset));
    memcpy(s->row, row, sizeof(row));
    s->slots = (int)count;
    if (s->encoder)
        for (int i = s->slots; i-- > 0;)
            s->free[s->free_count++] = i;
    return 1;
}

static int copy_text(char *to, const uint8_t *text, size_t size)
{
    size = size < TEXT_BYTES ? size : TEXT_BYTES - 1;
    memcpy(to, text, size);
    to[size] = 0;
    return 1;
}

/* Takes one message for a stream; 0 if it is not allowed. The worker's lock is held.
 * `stale` collects the slot of a frame that is no longer wanted. */
int vcf_accept_message(VcfStream *s, uint32_t kind, const uint8_t *body, size_t size, int *stale)
{
    Output *output;
    int status;
    VcfFormat format;
    switch (kind) {
    case OPENED:
        if (s->opened || size < 4 || (s->encoder && !s->memory))
            return 0;
        if (get32(body) > AHEAD_MAX)
            return 0;
        s->ahead = get32(body);
        s->opened = 1;
        if (size > 4 && s->encoder) {
            s->extradata = malloc(size - 4);
            if (!s->extradata)
                s->status = vcf_complain(s, VCF_MEMORY, "out of memory");
            else
                memcpy(s->extradata, body + 4, s->extradata_size = size - 4);
        }
        return 1;
    case FORMAT:
        if (s->encoder || size != FORMAT_BYTES || !read_format(&format, body) ||
            (s->coming_known &&
             (format.width != s->coming.width || format.height != s->coming.height ||
              format.bit_depth != s->coming.bit_depth)))
            return 0;
        s->coming = format;
        s->coming_known = 1;
        return 1;
    case FRAME:
        if (s->encoder || size != 25 || !s->memory || body[24] > 3 || get32(body + 4) >= (uint32_t)s->slots)
            return 0;
        if (get32(body) != s->epoch) {
            *stale = (int)get32(body + 4);
            return 1;
        }
        if (s->queued >= s->outstanding)
            return 0; /* more came out than went in */
        if (!(output = new_output(VCF_OK, 0)))
            break;
        output->slot = (int)get32(body + 4);
        output->pts = get64(body + 8);
        output->duration = get64(body + 16);
        output->key = body[24] & 1;
        output->corrupt = body[24] >> 1 & 1;
        output->format = s->coming;
        append(s, output);
        return 1;
    case PACKET:
        if (!s->encoder || size < 17 || s->queued >= s->outstanding)
            return 0;
        if (!(output = new_output(VCF_OK, size - 17)))
            break;
        output->pts = get64(body);
        output->duration = get64(body + 8);
        output->key = body[16] & 1;
        memcpy(output->data, body + 17, size - 17);
        append(s, output);
        return 1;
    case DONE:
        if (size < 16)
            return 0;
        if (get32(body) != s->epoch)
            return 1;
        status = (int)get32(body + 12);
        if (s->unanswered < 1 || status > 0 || get32(body + 8) > AHEAD_MAX)
            return 0;
        vcf_count_answer(s);
        s->ahead = get32(body + 8);
        if (status == VCF_OK)
            return 1;
        if (s->queued >= s->outstanding || get32(body + 4) > s->outstanding)
            return 0;
        if (!(output = new_output(status, TEXT_BYTES)))
            break;
        output->inputs = get32(body + 4);
        copy_text((char *)output->data, body + 16, size - 16);
        append(s, output);
        return 1;
    case DRAINED:
        if (size != 4)
            return 0;
        if (get32(body) == s->epoch)
            s->drained = 1;
        return 1;
    case RELEASED:
        if (!s->encoder || size != 4 || get32(body) >= (uint32_t)s->slots ||
            s->free_count >= s->slots)
            return 0;
        s->free[s->free_count++] = (int)get32(body);
        return 1;
    case FAILED:
        if (size < 4 || (int)get32(body) >= 0)
            return 0;
        s->status = (int)get32(body);
        return copy_text(s->message, body + 4, size - 4);
    default:
        return 0;
    }
    s->status = vcf_complain(s, VCF_MEMORY, "out of memory");
    return 1;
}
