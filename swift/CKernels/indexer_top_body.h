/* indexer_top_body.h — see indexer_top.c. Plain loops that vectorise: integers, exact in any order. */

static void CK(order_keys)(const float *scores, int32_t n, int32_t *keys, int32_t *least, int32_t *most) {
    int32_t low = INT32_MAX, high = INT32_MIN;
    for (int32_t i = 0; i < n; i++) {
        int32_t key = keys[i] = order_key(scores[i]);
        low = key < low ? key : low;
        high = key > high ? key : high;
    }
    *least = low;
    *most = high;
}

static int32_t CK(count_from)(const int32_t *keys, int32_t n, int32_t border) {
    int32_t count = 0;
    for (int32_t i = 0; i < n; i++) count += keys[i] >= border;
    return count;
}
