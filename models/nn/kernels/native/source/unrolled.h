// A loop whose counter is a constant.
#pragma once

#include <utility>

namespace gw {

// Calls act(0) to act(N - 1) with constants, so that arrays of registers become registers.
template <int N, class Act>
[[gnu::always_inline]] inline void unrolled(Act&& act) {
    [&]<int... n>(std::integer_sequence<int, n...>) __attribute__((always_inline)) {
        (act(std::integral_constant<int, n>{}), ...);
    }(std::make_integer_sequence<int, N>{});
}

}  // namespace gw
