// Steps one behind the other of which rows are one token each: the likeliest that one finds is what
// the next one reads. For any x86-64: the step itself is a form's.
#include <chrono>

#include "attempt.h"
#include "step_types.h"

namespace gw::stepping {

using Step = void (*)(const Model*, const Batch*);

struct Stretch {  // `records.py` mirrors it
    index most;                  // steps
    double seconds;              // from whose end on none is begun but the first
    index *ids, *positions;      // of the batch's rows
    Span* spans;                 // likewise
    index* drawn;                // (most, wanted): what is likeliest, step by step
    const index* ends;           // tokens behind which nothing is computed
    index end_count;
    const std::int32_t* called;  // not 0 once somebody wants the caller back
};

namespace {

using Clock = std::chrono::steady_clock;

bool goes_on(const Stretch& stretch, const index* drawn, index count) {
    if (__atomic_load_n(stretch.called, __ATOMIC_RELAXED)) return false;
    return std::none_of(drawn, drawn + count, [&](index token) {
        const index* last = stretch.ends + stretch.end_count;
        return token < 0 || std::find(stretch.ends, last, token) != last;
    });
}

}  // namespace

// Computes a batch, all of whose rows want their likeliest tokens, and goes on with these until
// there are `most`, or time is over, or a row has drawn an end or no number, or the caller is called.
// Returns how many steps that took, or 0 if one of them lacked memory.
GW_API index gw_go_on(Step step, const Model* model, const Batch* batch, const Stretch* stretch) {
    const index count = batch->wanted;
    const auto end = Clock::now() + std::chrono::duration<double>(stretch->seconds);
    for (index done = 0;; ++done) {
        step(model, batch);
        if (gw_lacked_memory()) return 0;
        index* drawn = stretch->drawn + done * count;
        std::copy_n(batch->likeliest, count, drawn);
        const bool last = done + 1 == stretch->most || Clock::now() >= end;
        if (last || !goes_on(*stretch, drawn, count)) return done + 1;
        for (index n = 0; n < count; ++n) {
            const index row = batch->wanted_rows[n];
            stretch->ids[row] = drawn[batch->targets[n]];
            ++stretch->positions[row];
            ++stretch->spans[row].start;
        }
    }
}

}  // namespace gw::stepping
