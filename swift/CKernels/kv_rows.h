/* kv_rows.h — what attention.c and indexer.c need of kv_rows.c besides ckernels.h. */
#ifndef PYDS4_KV_ROWS_H
#define PYDS4_KV_ROWS_H

#include "ckernels.h"
#include "vector.h"

/* The values of the 16 e2m1 codes; bit 3 is the sign. */
extern const float kv_e2m1[16];

/* Row `row` of paged rows. */
static inline const uint8_t *kv_paged_row(const ck_paged_rows *rows, int64_t row) {
    return rows->pages[row / rows->rows_per_page] + (size_t)(row % rows->rows_per_page) * rows->row_bytes;
}

#endif
