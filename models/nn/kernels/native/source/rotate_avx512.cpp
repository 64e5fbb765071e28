// Rotary embeddings on heads that lie side by side.
#include "vector.h"

using namespace gw;

// Turns the first `rotated` of `heads` of each row by its angles, or back (`direction` -1), and
// copies the others. The two halves of a head are the coordinates that turn together.
GW_API void gw_rotate_avx512(const bf16* source, index ld, const bf16* cosines, const bf16* sines,
                             index rows, index heads, index rotated, index dimension,
                             float direction, bf16* target) {
    const index half = dimension / 2;
    const __m512 sign = _mm512_set1_ps(direction);
#pragma omp parallel for schedule(static)
    for (index i = 0; i < rows; ++i) {
        const bf16 *cosine = cosines + i * dimension, *sine = sines + i * dimension;
        bf16* to = target + i * heads * dimension;
        const bf16* from = source + i * ld;
        for (index j = 0; j < half; j += lanes) {
            const __m512 c = load_bf16(cosine + j), s = _mm512_mul_ps(load_bf16(sine + j), sign);
            for (index at = j; at < rotated * dimension; at += dimension) {
                const __m512 first = load_bf16(from + at), second = load_bf16(from + at + half);
                store_bf16(to + at, _mm512_fmsub_ps(first, c, _mm512_mul_ps(second, s)));
                store_bf16(to + at + half, _mm512_fmadd_ps(second, c, _mm512_mul_ps(first, s)));
            }
        }
        for (index at = rotated * dimension; at < heads * dimension; at += lanes)
            _mm256_storeu_si256(
                reinterpret_cast<__m256i*>(to + at),
                _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + at)));
    }
}
