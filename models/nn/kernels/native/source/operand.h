// Rows and the packed panels that they are multiplied with.
#pragma once

#include "common.h"

namespace gw {

template <class Number, class Packed>
struct OperandOf {
    const Number* x = nullptr;
    index ldx = 0;
    const Packed* panels = nullptr;
    index inputs = 0;
    index stride = 0;  // from one panel to the next in `Packed`, 16 times the inputs or more

    OperandOf from(index row) const { return {x + row * ldx, ldx, panels, inputs, stride}; }
    OperandOf panel(index which) const {
        return {x, ldx, panels + which * stride, inputs, stride};
    }
};

using Operand = OperandOf<bf16, bf16>;

template <class Number>
struct RowsOf {
    const Number* values;
    index ld, count;
};

using Rows = RowsOf<bf16>;

// When panels of a kind are made bfloat16: not at all, before a product, or along with it.
enum class Widening { none, before, along };

// For products beside which nothing else is done, or to which nothing is added.
struct Nothing {
    template <class... Given>
    void operator()(const Given&...) const {}
};

}  // namespace gw
