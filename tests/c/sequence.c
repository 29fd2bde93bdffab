/*
 * Reads sequence headers with ffmpeg_bridge/ffmpeg/vcf_sequence.c, for test_plugin_sequence.py.
 *
 * Standard input: u32 size and bytes of each header, in the machine's byte order. Standard output:
 * a line per header: "ok" and its fields, "damaged", or "version N".
 */
#include "vcf_sequence.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void print(VcfSequence *s)
{
    const VcfFormat *f = &s->format;
    for (char *c = s->name; *c; c++)
        if (*c == '\n') /* which ends a line here */
            *c = ' ';
    printf("ok %d %d %d %d %d %d %d %d %d %d %d %d %d %u", f->width, f->height, f->bit_depth,
           f->sar_num, f->sar_den, f->color_primaries, f->color_trc, f->color_space,
           f->color_range, f->chroma_location, f->rotation, f->mirrored, f->field_order, f->known);
    for (int i = 0; i < 3; i++)
        printf(" %u %u", (unsigned)f->primaries[i][0], (unsigned)f->primaries[i][1]);
    printf(" %u %u %u %u %u %u ", (unsigned)f->white_point[0], (unsigned)f->white_point[1],
           (unsigned)f->luminance[0], (unsigned)f->luminance[1], (unsigned)f->max_content,
           (unsigned)f->max_average);
    for (int i = 0; i < 8; i++)
        printf("%02x", s->model_id[i]);
    printf(" %d %d %d %d %d %d %d %s\n", s->architecture, s->numerics, (int)s->structure,
           s->quality_levels, s->slots, s->reorder, s->reach, s->name);
}

int main(void)
{
    uint32_t size;
    setvbuf(stdout, NULL, _IOLBF, BUFSIZ); /* a line at a time, for who waits for it */
    while (fread(&size, sizeof(size), 1, stdin) == 1) {
        uint8_t *data = malloc(size); /* of exactly this size: a read past the end is seen */
        VcfSequence sequence;
        enum VcfSequenceStatus status;
        if ((size && !data) || fread(data, 1, size, stdin) != size)
            return 3;
        status = vcf_sequence_read(&sequence, data, size);
        if (status == VCF_SEQUENCE_OK)
            print(&sequence);
        else if (status == VCF_SEQUENCE_OTHER_VERSION)
            printf("version %d\n", vcf_sequence_version(data, size));
        else
            printf("damaged\n");
        free(data);
    }
    return 0;
}
