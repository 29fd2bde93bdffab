#include <math.h>

#include "symbols.h"

static float cost(float magnitude, float level, const float *row, size_t width, float weight)
{
    size_t column = level < (float)(width - 1) ? (size_t)level : width - 1;
    float error = magnitude - level;
    return error * error + weight * row[column];
}

void vcf_quantise(const float *u, const uint8_t *index, size_t count, const float *bits,
                  size_t width, const float *weights, float weight, float level_max,
                  int32_t *symbols)
{
    for (size_t i = 0; i < count; i++) {
        symbols[i] = 0;
        if (index[i] == 0)
            continue;
        float magnitude = fabsf(u[i]);
        float high = floorf(magnitude + 0.5f);
        if (!(high >= 1.0f))  /* rounds to zero; also where u is not a number */
            continue;
        const float *row = bits + (size_t)index[i] * width;
        float w = weights ? weights[i] : weight;
        float low = high - 1.0f;
        float cost_high = cost(magnitude, high, row, width, w);
        float cost_low = cost(magnitude, low, row, width, w);
        float level = cost_high < cost_low ? high : low;
        float best = cost_high < cost_low ? cost_high : cost_low;
        if (magnitude * magnitude + w * row[0] <= best)
            level = 0.0f;
        if (level > level_max)
            level = level_max;
        symbols[i] = u[i] < 0.0f ? -(int32_t)level : (int32_t)level;
    }
}
