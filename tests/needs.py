"""What some tests need beyond the README's set-up. Without it they are skipped, and the reason says what to install.

A test is marked `@needs_mpi`. `pytest --must-run mpi,browser` fails such tests instead of skipping them.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

from jittor_lora.data.sources import OFFICIAL, default_cache
from jittor_lora.system import machine, onednn

# Where the fused kernels must work, not whether they do: a kernel that does not compile must fail its tests.
HAS_KERNELS = onednn.is_served()
HAS_BF16 = HAS_KERNELS and machine.multiplies_bf16(machine.cpu_flags())


class Part(NamedTuple):
    """Something that a machine may lack.

    Attributes:
        is_there: looks for it; called once.
        reason: why a test is skipped without it.
    """

    is_there: Callable[[], bool]
    reason: str


def chromium() -> str | None:
    """The path of the browser."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def _has_browser() -> bool:
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return False
    return chromium() is not None


def official(name: str) -> Path:
    """The file that `--data NAME` downloads: in the folder NLG_DATA, in ../shared/data/nlg, or in the cache."""
    beside = Path(__file__).parents[2] / "shared" / "data" / "nlg"
    folders = [Path(os.environ["NLG_DATA"])] if "NLG_DATA" in os.environ else [beside, default_cache()]
    paths = [folder / OFFICIAL[name].file_name for folder in folders]
    return next(filter(Path.is_file, paths), paths[-1])


def has_packages(*names: str) -> bool:
    """Whether these can be imported; none of them is."""
    return all(importlib.util.find_spec(name) for name in names)


def peer_python(package: str) -> str | None:
    """A Python with the package: that of LLAMA_CPP_PYTHON, MLX_LM_PYTHON or LITGPT_PYTHON, or this one."""
    return os.environ.get(f"{package.upper()}_PYTHON") or (sys.executable if has_packages(package) else None)


def _has_parquet() -> bool:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        return False
    return True


def _has_cjk_font() -> bool:
    for path in font_manager.findSystemFonts():
        with contextlib.suppress(RuntimeError, OSError):  # not a font
            if FT2Font(path).get_char_index(ord("\u8bad")):
                return True
    return False


def _may(*command: str) -> bool:
    """Whether a command works in new namespaces, which only root may make, and not in every container."""
    if not all(map(shutil.which, ("unshare", command[0]))):
        return False
    return subprocess.run(["unshare", "--mount", "--net", "--uts", *command], stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL).returncode == 0


def _reaches_index() -> bool:
    """Whether pip gets a small package from the index that it is configured for."""
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-input", "--retries=1",
                               "--timeout=10", f"--dest={folder}", "six"], stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def _has_nvcc() -> bool:
    from fake_cuda import toolkit

    return bool(shutil.which("gcc")) and toolkit.real().usable


PARTS = {
    "mpi": Part(lambda: bool(shutil.which("mpirun") and shutil.which("mpicc")),
                "needs Open MPI: apt-get install openmpi-bin libopenmpi-dev"),
    "browser": Part(_has_browser,
                    "needs Chromium and playwright: apt-get install chromium; pip install -e '.[browser]'"),
    "cjk_font": Part(_has_cjk_font, "needs a Chinese font: apt-get install fonts-wqy-zenhei"),
    "kernels": Part(lambda: HAS_KERNELS, "needs oneDNN, which has no package for this platform"),
    "bf16": Part(lambda: HAS_BF16, "needs a processor that multiplies bf16 numbers"),
    "mount": Part(lambda: _may("mount", "-t", "tmpfs", "tmpfs", "/mnt"), "needs root, to mount a disk"),
    "hosts": Part(lambda: _may("ip", "link", "add", "jl-1", "type", "veth", "peer", "name", "jl-2"),
                  "needs root and iproute2, for network namespaces"),
    "parquet": Part(_has_parquet, "needs pyarrow: pip install -e '.[parquet]'"),
    "nlg": Part(lambda: all(official(name).is_file() for name in ("webnlg-dev", "dart-dev")),
                "needs the downloads of --data webnlg-dev and dart-dev, in their cache or in the folder NLG_DATA"),
    "no_network": Part(lambda: _may("true"), "needs root, to run commands without a network"),
    "index": Part(_reaches_index, "needs pip and a package index"),
    "serve": Part(lambda: has_packages("fastapi", "uvicorn", "sse_starlette", "prometheus_client", "httpx"),
                  "needs the server's packages: pip install -e '.[serve]' httpx"),
    "openai": Part(lambda: has_packages("openai"), "needs openai: pip install -e '.[clients]'"),
    "schemathesis": Part(lambda: has_packages("schemathesis"), "needs schemathesis: pip install -e '.[clients]'"),
    "sklearn": Part(lambda: has_packages("sklearn"), "needs scikit-learn: pip install -e '.[examples]'"),
    "notebooks": Part(lambda: has_packages("nbclient", "nbformat", "ipykernel"),
                      "needs nbclient and ipykernel: pip install -e '.[examples]'"),
    "llama_cpp": Part(lambda: bool(peer_python("llama_cpp")),
                      "needs llama-cpp-python, here or in the Python named by LLAMA_CPP_PYTHON"),
    "mlx": Part(lambda: bool(peer_python("mlx_lm")), "needs mlx-lm, here or in the Python named by MLX_LM_PYTHON"),
    "litgpt": Part(lambda: bool(peer_python("litgpt")), "needs litgpt, here or in the Python named by LITGPT_PYTHON"),
    "nvcc": Part(_has_nvcc, "needs nvcc, cuBLAS and cuRAND: pip install -e '.[cuda]'"),
}

(needs_mpi, needs_browser, needs_cjk_font, needs_kernels, needs_bf16, needs_mount, needs_hosts, needs_parquet,
 needs_nlg, needs_no_network, needs_index, needs_serve, needs_openai, needs_schemathesis, needs_sklearn,
 needs_notebooks, needs_llama_cpp, needs_mlx, needs_litgpt, needs_nvcc) = map(pytest.mark.needs, PARTS)
PRECISIONS = ["fp32", pytest.param("bf16", marks=needs_bf16)]


@functools.lru_cache(maxsize=None)
def is_there(part: str) -> bool:
    return PARTS[part].is_there()
