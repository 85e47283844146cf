/* quantize.h — weights to GGUF blocks: the inverse of quant_decode_row, as well as it can be done.
 *
 * Every quantiser minimises Σ importance · (w − ŵ)² over a row: with the mean square of each input
 * as importance that is, for independent inputs, the error of the matrix's output. Rows do not
 * depend on one another nor on the instruction set; callers split them over threads.
 */
#ifndef PYDS4_QUANTIZE_H
#define PYDS4_QUANTIZE_H

#include <stdbool.h>
#include <stdint.h>

/* True for the types that quantize_rows writes: all that quant_decode_row reads. */
bool quantize_supported(int32_t type);

/* x [rows, cols], finite, cols a multiple of the block size → `blocks`, row after row.
 * importance [cols], none negative, or NULL for equal weights; its scale does not matter. Rounded
 * to nearest, without a search and whatever the importance: F32, F16, BF16, Q8_0. */
void quantize_rows(int32_t type, const float *x, int64_t rows, int64_t cols, const float *importance,
                   void *blocks);

/* Σ importance · (w − ŵ)² and Σ importance · w² over all rows. */
void quantize_error(int32_t type, const float *x, int64_t rows, int64_t cols, const float *importance,
                    const void *blocks, double *error, double *norm);

#endif
