// Packing into panels in block floating point, which AVX2 multiplies with.
#include "block_float.h"

using namespace gw;

// Bytes of a panel of so many inputs.
GW_API index gw_rounded_bytes(index inputs) { return panel_bytes(inputs); }

// Packs W (N, K); N is a multiple of 16, K of 16.
GW_API void gw_pack_rounded(const float* weight, index outputs, index inputs, char* packed) {
#pragma omp parallel for schedule(static)
    for (index panel = 0; panel < outputs / panel_width; ++panel)
        round_along(weight + panel * panel_width * inputs, inputs, inputs,
                    packed + panel * panel_bytes(inputs));
}
