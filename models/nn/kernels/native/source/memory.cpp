// Whether a call lacked memory; for any x86-64.
#include <utility>

#include "attempt.h"

namespace {

thread_local bool lacked = false;

}  // namespace

void gw_lack_memory() { lacked = true; }

GW_API int gw_lacked_memory() { return std::exchange(lacked, false); }
