"""The device kernel without a device."""

import ctypes
import subprocess

import numpy as np

from cv_pipeline.inference.device_preprocess import LAUNCHED, VALUE_TYPES


class OnTheHost:
    """A device whose memory is the host's and whose kernel is the CUDA text, compiled by gcc with warnings as
    errors and bounds checked."""

    def __init__(self, folder, dtype):
        (folder / "k.c").write_text(LAUNCHED)
        flags = ["-O2", "-std=c99", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function"]
        subprocess.run(
            [
                "gcc",
                *flags,
                "-shared",
                "-fPIC",
                f"-DVALUE={VALUE_TYPES[dtype]}",
                "-o",
                folder / "k.so",
                folder / "k.c",
            ],
            check=True,
        )
        self.library, self.uploads, self.launches = ctypes.CDLL(str(folder / "k.so")), [], 0

    def load_kernel(self, code, name):
        return getattr(self.library, name)

    def memory(self, nbytes):
        return np.full(max(nbytes, 1), 0xAB, np.uint8)

    def pinned(self, shape, dtype):
        return np.full(shape, 0xCD, dtype)

    def synchronize(self):
        pass

    def upload(self, memory, array):
        assert array.nbytes <= memory.nbytes and array.flags.c_contiguous
        self.uploads.append(array.nbytes)
        memory[: array.nbytes] = array.reshape(-1).view(np.uint8)

    def launch(self, kernel, blocks, threads, arguments):
        self.launches += 1
        assert blocks[0] * threads >= arguments[5] * arguments[6] > (blocks[0] - 1) * threads
        point = {
            np.ndarray: lambda a: ctypes.c_void_p(a.ctypes.data),
            np.uint64: lambda a: ctypes.c_void_p(int(a)),
        }
        kernel(*[point.get(type(a), int)(a) for a in arguments], blocks[1])
