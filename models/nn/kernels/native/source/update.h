// A low-rank update of some outputs of some rows.
#pragma once

#include "common.h"

namespace gw {

// Laid out as the caller does, in eight bytes each.
template <class Number>
struct UpdateOf {
    index top, bottom, left, right;  // rows and outputs
    index rank, padded;
    index place, ld;  // in the buffers of inner values, where updates of the same rows lie abreast
    const Number *down, *up;  // (rank, inputs), (outputs, rank)
    double scale;
    Number *grad_down, *grad_up;  // or none

    index rows() const { return bottom - top; }
    index outputs() const { return right - left; }
};

}  // namespace gw
