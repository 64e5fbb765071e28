// Rows and the packed panels that they are multiplied with.
#pragma once

#include "ahead.h"
#include "common.h"

namespace gw {

template <class Number, class Packed>
struct OperandOf {
    const Number* x = nullptr;
    index ldx = 0;
    const Packed* panels = nullptr;
    index inputs = 0;
    index stride = 0;  // from one panel to the next, 16 times the inputs or more
    Ahead* ahead = nullptr;  // what is fetched meanwhile, if anything is

    OperandOf from(index row) const {
        return {x + row * ldx, ldx, panels, inputs, stride, ahead};
    }
    OperandOf panel(index which) const {
        return {x, ldx, panels + which * stride, inputs, stride, ahead};
    }

    [[gnu::always_inline]] void fetch() const {
        if (ahead) (*ahead)();
    }
};

using Operand = OperandOf<bf16, bf16>;

}  // namespace gw
