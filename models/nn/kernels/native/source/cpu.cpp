// What this processor can do; compiled for any x86-64, so that it may always be called.
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common.h"

namespace {

constexpr int request_permission = 0x1023;  // ARCH_REQ_XCOMP_PERM of asm/prctl.h
constexpr int tile_data = 18;               // the state component of AMX tiles

bool bit(unsigned value, int which) { return value >> which & 1; }

std::uint64_t enabled_state() {
    unsigned low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return std::uint64_t{high} << 32 | low;
}

bool has_avx2() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return false;
    if (!bit(c, 12) || !bit(c, 27)) return false;      // FMA, OSXSAVE
    if ((enabled_state() & 0x6) != 0x6) return false;  // the kernel saves YMM
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && bit(b, 5);
}

bool has_avx512_bf16() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if ((enabled_state() & 0xe6) != 0xe6) return false;  // the kernel saves ZMM
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    const bool avx512 = bit(b, 16) && bit(b, 17) && bit(b, 30) && bit(b, 31);
    return avx512 && bit(c, 11) &&  // VNNI
           __get_cpuid_count(7, 1, &a, &b, &c, &d) && bit(a, 5);
}

bool has_amx() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    if (!bit(d, 22) || !bit(d, 24) || !bit(d, 25)) return false;  // BF16, TILE, INT8
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

}  // namespace

// 0: nothing here can run; 1: AVX2 and FMA; 2: AVX512-BF16 besides; 3: AMX-BF16 and AMX-INT8
// besides, with the kernel's permission.
GW_API int gw_processor() {
    if (!has_avx2()) return 0;
    if (!has_avx512_bf16()) return 1;
    return has_amx() ? 3 : 2;
}
