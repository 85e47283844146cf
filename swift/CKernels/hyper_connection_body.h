/* hyper_connection_body.h — see hyper_connection.c. Channels [from, to) of one token. */

static void CK(collapse)(const float *streams, const float *pre, int64_t dim, int64_t from, int64_t to, float *x) {
    int64_t d = from;
    for (; d + 16 <= to; d += 16) {
        v16 sum = pre[0] * CK(v_load)(streams + d);
        for (int i = 1; i < STREAMS; i++)
            sum += pre[i] * CK(v_load)(streams + i * dim + d);
        CK(v_store)(x + d, sum);
    }
    for (; d < to; d++)
        x[d] = pre[0] * streams[d] + pre[1] * streams[dim + d] + pre[2] * streams[2 * dim + d] +
               pre[3] * streams[3 * dim + d];
}

static void CK(expand)(const float *y, const float *post, const float *comb, int64_t dim, int64_t from, int64_t to,
                       float *streams) {
    int64_t d = from;
    for (; d + 16 <= to; d += 16) {
        v16 s[STREAMS], add = CK(v_load)(y + d);
        for (int i = 0; i < STREAMS; i++)
            s[i] = CK(v_load)(streams + i * dim + d);
        for (int j = 0; j < STREAMS; j++) {
            v16 carried = comb[j] * s[0] + comb[4 + j] * s[1] + comb[8 + j] * s[2] + comb[12 + j] * s[3];
            CK(v_store)(streams + j * dim + d, post[j] * add + carried);
        }
    }
    for (; d < to; d++) {
        float s[STREAMS] = {streams[d], streams[dim + d], streams[2 * dim + d], streams[3 * dim + d]};
        for (int j = 0; j < STREAMS; j++)
            streams[j * dim + d] = post[j] * y[d] + (comb[j] * s[0] + comb[4 + j] * s[1] + comb[8 + j] * s[2] +
                                                     comb[12 + j] * s[3]);
    }
}
