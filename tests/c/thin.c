/*
 * Thins packets with ffmpeg_bridge/ffmpeg/vcf_thin.c, for test_plugin_thin.py.
 *
 * Standard input: u32 levels, u32 size and bytes of each packet, in the machine's byte order.
 * Standard output: a line per packet, how many bytes stay.
 */
#include "vcf_thin.h"

#include <stdio.h>
#include <stdlib.h>

int main(void)
{
    uint32_t head[2];
    while (fread(head, sizeof(head), 1, stdin) == 1) {
        uint8_t *data = malloc(head[1]); /* of exactly this size: a read past the end is seen */
        if ((head[1] && !data) || fread(data, 1, head[1], stdin) != head[1])
            return 3;
        printf("%zu\n", vcf_thin(data, head[1], (int)head[0]));
        free(data);
    }
    return 0;
}
