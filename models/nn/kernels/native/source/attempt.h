// What a call does when memory is lacking.
#pragma once

#include <new>

#include "common.h"

extern "C" void gw_lack_memory();  // from now on the next one says so to this thread, once
GW_API int gw_lacked_memory();

namespace gw {

// Does the work of a call whose caller knows no exceptions: without memory it ends, and results
// are anything. Most memory is got before the threads of a team begin: within it they wait for each
// other, so none can leave, and what is lacking there ends the process.
template <class Work>
void attempt(Work&& work) {
    try {
        work();
    } catch (const std::bad_alloc&) {
        gw_lack_memory();
    }
}

}  // namespace gw
