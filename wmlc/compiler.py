"""What torch.compile needs besides torch: a compiler of the machine's own. Free of torch."""

from __future__ import annotations

import os
import shutil

from wmlc.errors import InputError

COMPILERS = {  # by device: the language, the environment's word for one, and names that are looked for
    "cpu": ("C++", "CXX", ("g++", "clang++", "c++", "cl")),
    "cuda": ("C", "CC", ("gcc", "clang")),  # Triton compiles what starts its kernels
}


def require_compiler(purpose: str, device: str, instead: str) -> None:
    """Raise `InputError` where torch.compile has nothing to compile with. Args: what to do `instead`."""
    language, word, names = COMPILERS[device]
    if not os.environ.get(word) and not any(map(shutil.which, names)):
        where = "the CPU" if device == "cpu" else "what starts kernels on a GPU"
        raise InputError(
            f"{purpose} needs a {language} compiler ({' or '.join(names[:2])}) for {where}; install one, or {instead}"
        )
