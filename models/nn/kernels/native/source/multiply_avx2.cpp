// Products in float32 with a weight as it lies, for processors with AVX2 alone.
#include "attempt.h"
#include "multiply_rounded.h"

using namespace gw;

GW_API void gw_multiply_avx2(const float* x, index ldx, index rows, const float* weight,
                             index across, index along, index outputs, index inputs,
                             const float* bias, float* y) {
    multiply({x, ldx, rows}, {weight, across, along, outputs, inputs, bias}, y);
}

GW_API void gw_multiply_rounded_avx2(const float* x, index ldx, index rows, const float* weight,
                                     index across, index along, index outputs, index inputs,
                                     const float* bias, float* y) {
    attempt([&] {
        multiply_rounded({x, ldx, rows}, {weight, across, along, outputs, inputs, bias}, y);
    });
}
