// The pointwise ops in bfloat16 (`pointwise_avx512.cpp`) as other sources call them.
#pragma once

#include "common.h"

extern "C" {
void gw_norm_forward_avx512(const gw::bf16* x, gw::index ldx, const gw::bf16* added, gw::index lda,
                            gw::bf16* total, const void* gain, gw::index ldg,
                            gw::index gain_is_float, float epsilon, gw::index rows,
                            gw::index width, gw::bf16* normed, float* rstd);
void gw_norm_backward_avx512(const gw::bf16* grad, gw::index ldd, const gw::bf16* passed,
                             gw::index ldp, const gw::bf16* x, gw::index ldx, const float* rstd,
                             const void* gain, gw::index ldg, gw::index gain_is_float,
                             gw::index rows, gw::index width, gw::bf16* grad_x, float* grad_gain,
                             gw::index ldgg);
void gw_rotate_avx512(const gw::bf16* source, gw::index ld, const gw::bf16* cosines,
                      const gw::bf16* sines, gw::index rows, gw::index heads, gw::index rotated,
                      gw::index dimension, float direction, gw::bf16* target);
void gw_swiglu_forward_avx512(const gw::bf16* gate_up, gw::index ld, gw::index rows,
                              gw::index width, gw::bf16* inner);
void gw_swiglu_backward_avx512(const gw::bf16* grad, gw::index ldd, const gw::bf16* gate_up,
                               gw::index ld, gw::index rows, gw::index width,
                               gw::bf16* grad_gate_up);
}
