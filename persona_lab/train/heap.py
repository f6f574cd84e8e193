"""The memory of a process that trains: what a step frees stays with the process, for the next step.

    keep_freed_memory()    # once in a process; where the C library is not glibc nothing happens

On a CPU each step frees all its activations, and asks for as many a moment later. In between glibc gives the free end of
the heap back to the kernel, which clears every page before it hands it out again. The price of keeping it: what training
took at its most belongs to the process until it ends.
"""

import ctypes
import platform
from functools import cache

# malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
NEVER = (1 << 31) - 1
MOST = 32 << 20
"""The largest M_MMAP_THRESHOLD of 64-bit systems (mallopt(3)), bytes: what is larger is mapped by itself, and given back."""


@cache
def keep_freed_memory() -> None:
    """Let malloc keep the free end of the heap, and take all but the largest blocks from the heap."""
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, NEVER)
        mallopt(M_MMAP_THRESHOLD, MOST)
