// What is left of a step behind the last layer's attention: the rows whose states are read.
#pragma once

#include <algorithm>

#include "step_state.h"

namespace gw::stepping {

// A batch of the rows that are read. Where they were is in `read_rows`; spans are none of its own.
inline Batch only_read(Batch batch) {
    batch.rows = batch.read;
    batch.owners = batch.read_owners;
    batch.groups = batch.read_groups;
    batch.group_count = batch.read_group_count;
    return batch;
}

// Moves the rows that are read to the front of what the rest of a layer starts from.
inline void keep_read(State& state) {
    const auto& [m, b, s, team, thread] = state;
    const auto keep = [&](auto& rows, index width) {
        const Range own = share(width, state.thread, state.team.size);
        for (index n = 0; n < state.b.read; ++n) {
            if (state.b.read_rows[n] == n) continue;
            const auto first = rows.begin() + state.b.read_rows[n] * width;
            std::copy(first + own.first, first + own.last, rows.begin() + n * width + own.first);
        }
    };
    keep(s.residual, m.hidden);
    keep(s.normed, m.hidden);  // which bottlenecks beside the attention read
    keep(s.attended, m.heads * m.head_size);
    team.meet();
}

}  // namespace gw::stepping
