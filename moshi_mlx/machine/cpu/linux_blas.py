"""Matrix products of MLX's CPU backend on Linux, by OpenBLAS.

The CPU wheel of MLX for Linux carries the reference BLAS: exact, and five to fifteen times slower than the processor can multiply. The
package `scipy-openblas32` (what NumPy's own wheels are built on) brings OpenBLAS under a name of its own, `scipy_cblas_sgemm`, with the
same arguments. MLX calls `cblas_sgemm` through its table of imported functions; `use_openblas` points that one entry at OpenBLAS, as the
dynamic linker does for LD_PRELOAD, but also when MLX was imported first. Results agree to rounding. Nothing happens on macOS, where MLX uses
Accelerate, without the package, or with MOSHI_MLX_BLAS=mlx in the environment.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import sys
from pathlib import Path

_IMPORTED = b"cblas_sgemm"
_DT_STRTAB, _DT_SYMTAB, _DT_RELA, _DT_RELASZ, _DT_PLTRELSZ, _DT_JMPREL = 5, 6, 7, 8, 2, 23
_PT_LOAD, _PT_DYNAMIC = 1, 2
_PROT_READ, _PROT_WRITE = 1, 2


def use_openblas() -> bool:
    """Let MLX's float32 products run in OpenBLAS, if that can be done; says whether it was."""
    if sys.platform != "linux" or struct.calcsize("P") != 8 or os.environ.get("MOSHI_MLX_BLAS") == "mlx":
        return False
    try:
        import mlx.core  # noqa: F401 - loads the library whose import is redirected
        import scipy_openblas32 as package

        library = ctypes.CDLL(str(Path(package.get_lib_dir()) / f"lib{package.get_library()}.so"))
        target = ctypes.cast(library.scipy_cblas_sgemm, ctypes.c_void_p).value
        found = _loaded("libmlx.so")
        if target is None or found is None:
            return False
        if "OPENBLAS_NUM_THREADS" not in os.environ:
            # A second thread that waits for a busy core makes every product wait with it.
            library.scipy_openblas_set_num_threads(1)
        path, base = found
        entries = _entries(path.read_bytes())
        for offset in entries:
            _point(base + offset, target)
        return bool(entries)
    except (ImportError, OSError, AttributeError, struct.error, IndexError):
        return False


def _loaded(name: str) -> tuple[Path, int] | None:
    """Path and load address of a library of this process."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5].endswith(f"/{name}") and int(fields[2], 16) == 0:
            return Path(fields[5]), int(fields[0].split("-")[0], 16)
    return None


def _entries(elf: bytes) -> list[int]:
    """Offsets, from the load address, of the table entries of a 64-bit ELF library through which it calls `cblas_sgemm`."""
    header_offset, header_size, header_count = struct.unpack_from("<Q14xHH", elf, 32)
    headers = [struct.unpack_from("<IIQQQQQQ", elf, header_offset + i * header_size) for i in range(header_count)]

    def in_file(address: int) -> int:
        return next(address - h[3] + h[2] for h in headers if h[0] == _PT_LOAD and h[3] <= address < h[3] + h[5])

    start, size = next((h[2], h[5]) for h in headers if h[0] == _PT_DYNAMIC)
    dynamic = dict(struct.iter_unpack("<qQ", elf[start : start + size]))
    symbols, strings = in_file(dynamic[_DT_SYMTAB]), in_file(dynamic[_DT_STRTAB])
    found = []
    for table, length in ((_DT_JMPREL, _DT_PLTRELSZ), (_DT_RELA, _DT_RELASZ)):
        if table not in dynamic:
            continue
        at = in_file(dynamic[table])
        for offset, info, _ in struct.iter_unpack("<QQq", elf[at : at + dynamic[length]]):
            if info >> 32:
                (name,) = struct.unpack_from("<I", elf, symbols + 24 * (info >> 32))
                if elf[strings + name : strings + name + len(_IMPORTED) + 1] == _IMPORTED + b"\0":
                    found.append(offset)
    return found


def _point(address: int, target: int) -> None:
    """Write `target` at `address`; the linker may have made the page read-only."""
    page = address & -mmap.PAGESIZE
    libc = ctypes.CDLL(None, use_errno=True)
    mprotect = libc.mprotect
    mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if mprotect(page, mmap.PAGESIZE, _PROT_READ | _PROT_WRITE):
        raise OSError(ctypes.get_errno(), "mprotect")
    ctypes.c_uint64.from_address(address).value = target
