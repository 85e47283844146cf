/* quantize_lanes_body.h — what the searches of quantize_*_body.h share: a lane is a sub-block (or a
 * whole block), so that one pass judges a choice for sixteen of them and no sum runs across lanes. */

V_INLINE void CK(lanes_transpose)(v16 v[16])
{
    for (int stage = 0; stage < 4; stage++) {
        v16 t[16];
        for (int i = 0; i < 8; i++) {
            t[2 * i] = __builtin_shufflevector(v[i], v[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            t[2 * i + 1] =
                __builtin_shufflevector(v[i], v[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        }
        memcpy(v, t, sizeof t);
    }
}

/* out[i] = weight i of each of `count` blocks of n (16 or 32) that stand behind one another; lanes
 * without a block get zeros. */
V_INLINE void CK(lanes_load)(const float *x, int n, int count, v16 out[CK_BLOCK])
{
    for (int part = 0; part < n; part += 16) {
        v16 rows[16];
        for (int b = 0; b < 16; b++)
            rows[b] = b < count ? CK(v_load)(x + b * n + part) : CK(v_set)(0);
        CK(lanes_transpose)(rows);
        memcpy(out + part, rows, sizeof rows);
    }
}

/* codes[n · lane + i] = q[i][lane], all in 0…255. */
V_INLINE void CK(lanes_store)(const v16 q[CK_BLOCK], int n, int count, uint8_t *codes)
{
    for (int part = 0; part < n; part += 16) {
        v16 rows[16];
        memcpy(rows, q + part, sizeof rows);
        CK(lanes_transpose)(rows);
        for (int b = 0; b < count; b++) {
            b16 bytes = __builtin_convertvector(__builtin_convertvector(rows[b], i16), b16);
            memcpy(codes + b * n + part, &bytes, sizeof bytes);
        }
    }
}

/* bytes[16 · lane + i] = q[i][lane] + 16 · q[i + 16][lane]: blocks of 32 nibbles. */
V_INLINE void CK(lanes_store_nibbles)(const v16 q[CK_BLOCK], int count, uint8_t *bytes)
{
    v16 rows[16];
    for (int i = 0; i < 16; i++)
        rows[i] = CK(v_fma)(q[i + 16], CK(v_set)(16), q[i]);
    CK(lanes_transpose)(rows);
    for (int b = 0; b < count; b++) {
        b16 packed = __builtin_convertvector(__builtin_convertvector(rows[b], i16), b16);
        memcpy(bytes + 16 * b, &packed, sizeof packed);
    }
}

/* ck_rounded_f16 of each lane below 65520: away from the last 13 bits, or in steps of 2^-24. */
V_INLINE v16 CK(lanes_rounded_f16)(v16 s)
{
    i16 sign = (i16)s & INT32_MIN, bits = (i16)s ^ sign;
    v16 magnitude = (v16)bits, fine = (magnitude + 0.5f) - 0.5f;
    v16 coarse = (v16)((bits + 0xfff + (bits >> 13 & 1)) & ~0x1fff);
    return (v16)((i16)CK(v_select)(magnitude < 0x1p-14f, fine, coarse) | sign);
}
