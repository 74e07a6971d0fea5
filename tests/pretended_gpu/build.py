"""Build the library that stands for CUDA's runtime, and start Python with it.

It is ``stub.c`` and, for each other function of CUDA that PyTorch imports, one that does nothing and returns success.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

_SOURCE = Path(__file__).with_name("stub.c")
_LIBRARY = "libpretended.so"
_CUDA_FUNCTION = re.compile(r"(?:_*cuda|cu)[A-Z]\w*")
_FILES = "cuFile"  # of another library, which is present


def reason_to_skip() -> str | None:
    """Return why this machine cannot pretend a GPU, or None if it can."""
    if sys.platform != "linux":
        return f"a GPU can be pretended on Linux only, not on {sys.platform}"
    if missing := [tool for tool in ("gcc", "nm") if shutil.which(tool) is None]:
        return f"{' and '.join(missing)} must be installed to pretend a GPU"
    if torch.version.cuda is None:
        return f"this PyTorch ({torch.__version__}) was built without CUDA"
    if _headers() is None:
        return "cuda_runtime_api.h is not installed; it comes with triton and with CUDA"
    return None


def library() -> Path:
    """Return the library to preload, and build it unless that has been done for this PyTorch and these sources."""
    sources = _SOURCE.read_bytes() + Path(__file__).read_bytes()
    digest = hashlib.sha256(sources + torch.__version__.encode()).hexdigest()[:16]
    folder = _cache_dir() / digest
    if not folder.is_dir():
        made = Path(tempfile.mkdtemp(dir=_cache_dir()))
        _compile(made)
        try:
            made.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(made)
    return folder / _LIBRARY


def run(module: str, folder: Path, text: str = "", num_ranks: int = 1) -> list[str]:
    """Run a module of this package in new processes with the library, and return what each has printed.

    Args:
        module: Name of the module.
        folder: Working directory; caches go there, too.
        text: Standard input.
        num_ranks: Number of processes. Several look as if torchrun had started each on a host of its own.
    """
    paths = [str(_SOURCE.parents[1]), str(_SOURCE.parents[2])]
    settings = {"LD_PRELOAD": str(library()), "PYTHONPATH": os.pathsep.join(paths), "GENIMG_CACHE": str(folder / "cache")}
    settings |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    if num_ranks > 1:
        settings |= {"WORLD_SIZE": str(num_ranks), "LOCAL_RANK": "0"}

    def run_rank(rank: int) -> subprocess.CompletedProcess[str]:
        own = {"RANK": str(rank)} if num_ranks > 1 else {}
        return subprocess.run(
            [sys.executable, "-m", f"pretended_gpu.{module}"],
            cwd=folder, env=os.environ | settings | own, input=text, capture_output=True, text=True, check=False,
        )  # fmt: skip

    with ThreadPoolExecutor(num_ranks) as pool:
        processes = list(pool.map(run_rank, range(num_ranks)))
    errors = "".join(process.stderr for process in processes)
    assert not any(process.returncode for process in processes), errors
    return [process.stdout for process in processes]


def _cache_dir() -> Path:
    """Return a directory below $GENIMG_CACHE, or one of the temporary directory that only this user can write to."""
    cache = os.environ.get("GENIMG_CACHE")
    folder = Path(cache, "pretended_gpu") if cache else Path(tempfile.gettempdir(), f"genimg_pretended_gpu_{os.getuid()}")
    folder = folder.resolve()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user: set GENIMG_CACHE")
    return folder


def _headers() -> Path | None:
    packages = Path(torch.__file__).parents[1]
    candidates = [
        packages / "triton/backends/nvidia/include",
        *packages.glob("nvidia/*/include"),
        Path("/usr/local/cuda/include"),
    ]
    return next((folder for folder in candidates if (folder / "cuda_runtime_api.h").is_file()), None)


def _compile(folder: Path) -> None:
    """Compile the library into ``folder``."""
    written = set(re.findall(rf"\b({_CUDA_FUNCTION.pattern})\(", _SOURCE.read_text(encoding="utf-8")))
    others = sorted(_imported() - written)
    rest = folder / "rest.c"
    rest.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in others), encoding="utf-8")
    flags = ["-O1", "-w", "-fPIC", "-shared", f"-I{_headers()}", "-DCUDARTAPI="]
    flags.append("-Wl,-soname,libcuda.so.1")  # the driver, which PyTorch opens by this name
    subprocess.run(["gcc", *flags, "-o", str(folder / _LIBRARY), str(_SOURCE), "-x", "c", str(rest)], check=True)


def _imported() -> set[str]:
    """Return the functions of CUDA's runtime and driver that PyTorch and torchvision import."""
    packages = Path(torch.__file__).parents[1]
    libraries = [*packages.glob("torch/lib/lib*.so"), *packages.glob("torchvision/*.so")]
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", *map(str, libraries)], check=True, capture_output=True, text=True
    ).stdout
    names = {line.split()[-1].partition("@")[0] for line in listed.splitlines() if line.strip()}
    return {name for name in names if _CUDA_FUNCTION.fullmatch(name) and not name.startswith(_FILES)}


if __name__ == "__main__":
    print(library())
