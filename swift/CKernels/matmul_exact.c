/* matmul_exact.c — quantised weights × f32 activations.
 *
 * The other kernels round activations to eight bits, as every fast CPU engine does. With PYDS4_CPU_EXACT=1
 * this one takes their place: several times slower, for measuring what the rounding costs and for comparing
 * other backends with.
 */
#include "matmul_kernels.h"
#include "vector.h"

#include <pthread.h>
#include <stdlib.h>

static pthread_once_t asked_once = PTHREAD_ONCE_INIT;
static bool exact;

static void ask(void) {
    const char *value = getenv("PYDS4_CPU_EXACT");
    exact = value && *value && strcmp(value, "0") != 0;
}

bool ck_is_exact(void) {
    pthread_once(&asked_once, ask);
    return exact;
}

/* Columns decoded at a time: a block of every type, where a row has whole ones. */
enum { PIECE = 256 };

/* At most sixteen products to a lane in f32, the lanes in double precision. */
static double dot(const float *weights, const float *x, int64_t stride, int64_t n) {
    float lanes[CK_FLOATS] = {0};
    for (int64_t k = 0; k < n; k += CK_FLOATS)
        for (int i = 0; i < CK_FLOATS; i++)
            lanes[i] += weights[k + i] * x[k * stride + i];
    double sum = 0;
    for (int i = 0; i < CK_FLOATS; i++)
        sum += (double)lanes[i];
    return sum;
}

void matmul_tile_exact(const ck_tile *tile) {
    int64_t piece = tile->cols % PIECE == 0 ? PIECE : CK_BLOCK, stride = tile->acts.stride;
    size_t piece_bytes = tile->row_bytes / (size_t)(tile->cols / piece);
    double sums[CK_TILE_TOKENS];
    float weights[PIECE];
    for (int r = 0; r < CK_TILE_ROWS; r++) {
        const uint8_t *row = ck_tile_row(tile, r);
        for (int64_t t = 0; t < tile->n; t++)
            sums[t] = 0;
        for (int64_t k = 0; k < tile->cols; k += piece, row += piece_bytes) {
            quant_decode_row(tile->type, row, weights, piece);
            for (int64_t t = 0; t < tile->n; t++)
                sums[t] += dot(weights, tile->acts.floats + (k / CK_FLOATS * stride + tile->tokens[t]) * CK_FLOATS,
                               stride, piece);
        }
        for (int64_t t = 0; t < tile->n; t++)
            tile->out[t * CK_TILE_ROWS + r] = (float)sums[t];
    }
}
