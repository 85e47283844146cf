/* vector_body.h — arithmetic on v16, included once an instruction set by vector_isa.h. */

V_INLINE v16 CK(v_load)(const float *p) {
    v16 v;
    memcpy(&v, p, sizeof v);
    return v;
}
V_INLINE void CK(v_store)(float *p, v16 v) { memcpy(p, &v, sizeof v); }
V_INLINE v16 CK(v_set)(float x) { return (v16){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
V_INLINE v16 CK(v_fma)(v16 a, v16 b, v16 c) { return __builtin_elementwise_fma(a, b, c); }
/* `mask` has all bits of a lane set or none: the result of a comparison. */
V_INLINE v16 CK(v_select)(i16 mask, v16 yes, v16 no) {
    return (v16)(((i16)yes & mask) | ((i16)no & ~mask));
}
V_INLINE v16 CK(v_max)(v16 a, v16 b) { return CK(v_select)(a > b, a, b); }
V_INLINE v16 CK(v_min)(v16 a, v16 b) { return CK(v_select)(a < b, a, b); }

/* The sum of the lanes, always by halves: 16 → 8 → 4 → 2 → 1. */
V_INLINE float CK(v_sum)(v16 v) {
    v8 a = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
           __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
    v4 b = __builtin_shufflevector(a, a, 0, 1, 2, 3) + __builtin_shufflevector(a, a, 4, 5, 6, 7);
    v2 c = __builtin_shufflevector(b, b, 0, 1) + __builtin_shufflevector(b, b, 2, 3);
    return c[0] + c[1];
}

/* e^x to about 2 ulp, for x <= 88; below -87.3 it is 0. Range reduction by ln 2 in two parts, then
 * a degree-6 polynomial on [-ln2/2, ln2/2] (Taylor terms, error 2e-8 there). */
V_INLINE v16 CK(v_exp)(v16 x) {
    v16 tiny = CK(v_set)(-87.0f);
    v16 y = CK(v_min)(CK(v_max)(x, tiny), CK(v_set)(88.0f));
    v16 n = __builtin_elementwise_roundeven(y * CK(v_set)(1.44269504088896341f));
    v16 r = CK(v_fma)(n, CK(v_set)(-0.693145751953125f), y);
    r = CK(v_fma)(n, CK(v_set)(-1.42860682030941723e-6f), r);
    v16 p = CK(v_set)(1.0f / 5040);
    p = CK(v_fma)(p, r, CK(v_set)(1.0f / 720));
    p = CK(v_fma)(p, r, CK(v_set)(1.0f / 120));
    p = CK(v_fma)(p, r, CK(v_set)(1.0f / 24));
    p = CK(v_fma)(p, r, CK(v_set)(1.0f / 6));
    p = CK(v_fma)(p, r, CK(v_set)(0.5f));
    p = CK(v_fma)(p, r, CK(v_set)(1.0f));
    p = CK(v_fma)(p, r, CK(v_set)(1.0f));
    i16 e = __builtin_convertvector(n, i16);
    i16 bits = (i16)p + (e << 23);
    v16 out = (v16)bits;
    return CK(v_select)(x < tiny, CK(v_set)(0.0f), out);
}

/* Sixteen e4m3 bytes as bits of f32: the 7 value bits shifted in, so that the exponent is 120 too small. */
V_INLINE i16 CK(v_e4m3_bits)(const uint8_t *p) {
    b16 b;
    memcpy(&b, p, sizeof b);
    i16 w = __builtin_convertvector(b, i16);
    return ((w & 0x80) << 24) | ((w & 0x7f) << 20);
}
