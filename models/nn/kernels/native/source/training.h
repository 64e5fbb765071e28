// The entry points of training, in the form that a translation unit asks for: by `Isa`, under the
// names that `GW_FORM(function)` gives.
#pragma once

#include "attend_forms.h"
#include "cross_entropy_packed.h"
#include "layers.h"
#include "project_gradient.h"

using namespace gw;

GW_API void GW_FORM(project_forward)(const bf16* weight, index ld, index outputs, index inputs,
                                     const bf16* bias, const Update* updates, index count,
                                     const bf16* x, index ldx, index rows, bf16* inner, bf16* y) {
    project_forward<Isa>({weight, ld, outputs, inputs, bias, updates, count}, {x, ldx, rows},
                         inner, y);
}

GW_API void GW_FORM(project_backward)(const bf16* weight, index ld, index outputs, index inputs,
                                      const Update* updates, index count, const bf16* x, index ldx,
                                      const bf16* dy, index ldy, index rows, const bf16* inner,
                                      bf16* pulled, bf16* dx) {
    project_backward<Isa>({weight, ld, outputs, inputs, nullptr, updates, count}, {dy, ldy, rows},
                          {x, ldx, rows}, inner, pulled, dx);
}

GW_API void GW_FORM(weight_gradient)(const bf16* dy, index ldy, index outputs, const bf16* x,
                                     index ldx, index inputs, index rows, bf16* gradient) {
    attempt([&] {
        gather_weight<Isa>({dy, ldy, rows}, outputs, {x, ldx, rows}, inputs, gradient);
    });
}

GW_API void GW_FORM(cross_entropy)(const bf16* weight, index ld, index outputs, index inputs,
                                   const bf16* bias, const bf16* x, index ldx, index rows,
                                   const index* targets, float* losses, std::uint8_t* correct,
                                   float* grad) {
    attempt([&] {
        cross_entropy<PackedBlocks<Isa>>({weight, ld, outputs, inputs, bias}, {x, ldx, rows},
                                         targets, losses, correct, grad);
    });
}
