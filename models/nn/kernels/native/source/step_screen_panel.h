// What a screen's panel says of its tokens besides their numbers: see `step_screen.h`.
#pragma once

#include <limits>

#include "step_screened.h"
#include "vector.h"

namespace gw::stepping {

constexpr index screen_head = 3 * panel_width * sizeof(float);  // scales, lost lengths, lengths

// What a panel says of its 16 tokens.
struct ScreenedPanel {
    explicit ScreenedPanel(const char* panel) {
        const auto* head = reinterpret_cast<const float*>(panel);
        scale = load(head), lost = load(head + lanes), size = load(head + 2 * lanes);
    }

    // What a row's products with integers come to.
    Floats scaled(Floats whole, const Screened& row) const {
        return whole * (scale * splat(row.step));
    }
    Floats scaled(const std::int32_t* whole, const Screened& row) const {
        return scaled(load_whole(whole, row.start), row);
    }

    // How far logits may lie from what the screen says.
    Floats bound(const Screened& row) const {
        return fma(lost, splat(row.length), size * splat(row.left));
    }

   private:
    Floats scale, lost, size;
};

}  // namespace gw::stepping
