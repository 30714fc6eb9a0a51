"""CUDA toolkits of empty files, with an nvcc that only says what it is, and cards, for tests of how CUDA is found."""

from __future__ import annotations

from pathlib import Path

from jittor_lora.system import cuda
from jittor_lora.system.cuda_driver import Card, Driver

ARCHS = {"11.8": (35, 50, 60, 61, 70, 75, 80, 86, 87, 89, 90), "12.4": (50, 60, 61, 70, 75, 80, 86, 87, 89, 90),
         "12.8": (50, 60, 61, 70, 75, 80, 86, 87, 89, 90, 100, 101, 120),
         "13.0": (75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121)}
HEADERS = ("cuda_runtime.h", "cublas.h", "cublas_v2.h", "cublasLt.h", "curand.h")
LIBRARIES = ("cudart", "cublas", "cublasLt", "curand")


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def files(folder: Path, names) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def nvcc_at(home: Path, release: str, gcc: int = 15) -> Path:
    """The compiler and its own headers, at `home` as in a toolkit."""
    archs = "".join(f"compute_{arch}\\n" for arch in ARCHS.get(release, ()))
    (home / "include" / "crt").mkdir(parents=True, exist_ok=True)
    (home / "include" / "crt" / "host_config.h").write_text(f"#if __GNUC__ > {gcc}\n#error\n")
    return executable(home / "bin" / "nvcc", f"""#!/bin/sh
case "$*" in
--version*) echo "Cuda compilation tools, release {release}, V{release}.99" ;;
--list-gpu-arch) printf "{archs}" ;;
--dryrun*) echo "#$ TOP={home}/bin/.." >&2 ;;
esac
""")


def toolkit(home: Path, release: str = "12.4", headers=HEADERS, libraries=LIBRARIES, folder: str = "lib64",
            gcc: int = 15) -> Path:
    """A toolkit. Returns the path of its nvcc."""
    files(home / "include", headers)
    files(home / folder, [f"lib{name}.so" for name in libraries])
    return nvcc_at(home, release, gcc)


def card(capability: float = 8.6, name: str = "NVIDIA GeForce") -> Card:
    major, minor = divmod(round(10 * capability), 10)
    return Card(name, (major, minor), 8 << 30)


def driver(newest: tuple[int, int] = (13, 0), *capabilities: float) -> Driver:
    return Driver(newest, tuple(map(card, capabilities or (8.6,))))


def find(nvcc, gcc: str = "12.2.0", having: Driver | None = None, **environ: str) -> cuda.Cuda:
    return cuda.find({"nvcc_path": str(nvcc), **environ}, lambda: having or driver())
