// Rows and the packed panels that they are multiplied with.
#pragma once

#include "common.h"

namespace gw {

struct Operand {
    const bf16* x = nullptr;
    index ldx = 0;
    const bf16* panels = nullptr;
    index inputs = 0;
    index stride = 0;  // from one panel to the next, 16 times the inputs or more

    Operand from(index row) const { return {x + row * ldx, ldx, panels, inputs, stride}; }
    Operand panel(index which) const {
        return {x, ldx, panels + which * stride, inputs, stride};
    }
};

}  // namespace gw
