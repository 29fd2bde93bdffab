/* Functions that are compiled for several instruction sets, of which the loader chooses one. */
#ifndef VCFILTER_NATIVE_CLONES_H
#define VCFILTER_NATIVE_CLONES_H

#include <features.h>

/* Not with the address sanitizer, which is not there yet when the loader chooses. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__)
#define VCF_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define VCF_CLONES
#endif

#endif
