/* quantize_iq2_xxs.c — 2.06 bits a weight: eight magnitudes at a time from a table of 256, signs with
 * even parity, a four-bit scale for 32 weights.
 *
 * For a scale s the error of eight weights with table entry g is Σw·x² − 2s·A + s²·B with
 *   A = Σ w·|x|·g, less twice the smallest term when the signs' parity has to be mended
 *   B = Σ w·g²
 * neither of which depends on s: both are computed once for all 256 entries, and any scale can then
 * be judged exactly, over the whole table, for three operations an entry. */
#include "quantize.h"

#include <math.h>

enum { ENTRIES = 256, GROUPS = 32, SUBS = 8 };

typedef struct {
    _Alignas(64) float grid[8][ENTRIES]; /* magnitudes, element by element */
} iq2_table;

typedef struct {
    _Alignas(64) float a[GROUPS][ENTRIES], b[GROUPS][ENTRIES]; /* of eight weights each */
} iq2_sums;

static float step_of(int scale)
{
    return 0.125f * (float)(2 * scale + 1);
}

#define CK_BODY "quantize_iq2_xxs_body.h"
#include "vector_isa.h"

static const iq2_table *table(void)
{
    /* Two threads may fill it at once, with the same numbers. */
    static iq2_table shared;
    static _Atomic int ready;
    if (!ready) {
        for (int k = 0; k < ENTRIES; k++)
            for (int j = 0; j < 8; j++)
                shared.grid[j][k] = (float)(ck_iq2_xxs_grid[k] >> 8 * j & 255);
        ready = 1;
    }
    return &shared;
}

/* Entry and signs of one group at scale s. */
static void store_group(const iq2_table *t, const float *x, const float *w, const float *a, const float *b,
                        float s, uint8_t *entry, uint32_t *signs)
{
    int best = 0;
    for (int k = 1; k < ENTRIES; k++)
        if (s * (s * b[k] - 2 * a[k]) < s * (s * b[best] - 2 * a[best]))
            best = k;
    uint32_t bits = 0;
    int cheapest = 0;
    float least = INFINITY;
    for (int j = 0; j < 8; j++) {
        bits |= (uint32_t)(x[j] < 0) << j;
        float cost = w[j] * fabsf(x[j]) * t->grid[j][best];
        if (cost < least) {
            least = cost;
            cheapest = j;
        }
    }
    if (__builtin_parity(bits))
        bits ^= 1u << cheapest;
    *entry = (uint8_t)best;
    *signs = bits & 127;
}

void quantize_iq2_xxs(const float *x, const float *w, ck_block_iq2_xxs *out)
{
    const iq2_table *t = table();
    iq2_sums sums;
    int scale[SUBS];
    float d = CK_DISPATCH(iq2_search)(t, x, w, &sums, scale);
    memset(out, 0, sizeof *out);
    out->d = ck_f16_of_f32(d);
    for (int sub = 0; sub < SUBS; sub++) {
        uint32_t packed = (uint32_t)scale[sub] << 28;
        float s = d * step_of(scale[sub]);
        for (int e = 0; e < 4; e++) {
            int g = 4 * sub + e;
            uint8_t entry;
            uint32_t signs;
            store_group(t, x + 8 * g, w + 8 * g, sums.a[g], sums.b[g], s, &entry, &signs);
            out->sub[sub].grid[e] = entry;
            packed |= signs << 7 * e;
        }
        out->sub[sub].signs_scale = packed;
    }
}
