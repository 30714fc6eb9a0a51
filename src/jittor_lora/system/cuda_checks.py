"""What `jittor-lora doctor` says of the GPU: the driver with its cards, and CUDA with nvcc, headers and libraries."""

from __future__ import annotations

from jittor_lora.system.check import MISSING, OK, WARNING, Check
from jittor_lora.system.cuda import Cuda
from jittor_lora.system.cuda_driver import Driver

LAST_OF_12 = (12, 9)  # compiles for cards from GTX 900 on; CUDA 13 begins with RTX 20
CPU = "or ignore this to compute on the CPU"


def check_driver(driver: Driver, wanted: bool, wsl: bool) -> Check:
    """`wanted`: there is an nvcc; `wsl`: this is Windows' Linux."""
    if driver.problem:
        if not wanted:
            return Check("GPU", OK, "none")
        how = ("install NVIDIA's driver in Windows, none in Linux; then wsl --update and wsl --shutdown" if wsl else
               "Ubuntu: ubuntu-drivers install, and restart; in a container: start it with --gpus all")
        return Check("GPU", WARNING, driver.problem, f"{how}; {CPU}")
    cards = "; ".join(map(str, driver.cards))
    return Check("GPU", OK, f"{cards}; the driver runs CUDA up to {driver.cuda[0]}.{driver.cuda[1]}")


def check_cuda(found: Cuda, asked: bool) -> Check:
    """`asked`: the user named an nvcc in `nvcc_path`."""
    if found.usable:
        convolutions = (f"cuDNN {found.cudnn} for other networks' convolutions" if found.convolutions else
                        f"other networks' convolutions need cuDNN 8{_found_cudnn(found)}")
        return Check("CUDA", OK, f"{found.version}, {found.nvcc}; {convolutions}")
    if asked:
        how = mend(found) if found.nvcc else "set it to nvcc's file, such as /usr/local/cuda/bin/nvcc"
        return Check("CUDA", MISSING, f"nvcc_path: {found.problem}",
                     f"{how}; or set it empty to compute on the CPU: export nvcc_path=")
    if not found.nvcc:
        if found.driver.problem:
            return Check("CUDA", OK, "none, computing on the CPU")
        return Check("CUDA", WARNING, "no nvcc; computing on the CPU", f"{mend(found)}; {CPU}")
    return Check("CUDA", WARNING, f"{found.nvcc} is not used: {found.problem}", f"{mend(found)}; {CPU}")


def mend(found: Cuda) -> str:
    """How to fix `found.problem`."""
    newest = found.driver.cuda
    if found.driver.problem:
        return "see GPU"
    if not found.version:
        return _toolkit(newest)
    if found.lacking:
        return _parts(found)
    if found.is_too_new:
        return f"install a newer driver, or CUDA {newest[0]}.{newest[1]}: {_toolkit(newest)}"
    if found.dropped:
        return _toolkit(LAST_OF_12)
    if found.refuses_gcc:
        gcc = f"g++-{found.newest_gcc}"
        return f"Debian, Ubuntu: apt-get install {gcc}; then export cc_path=/usr/bin/{gcc}"
    return _toolkit(newest)


def _toolkit(newest: tuple[int, int]) -> str:
    """How to install the CUDA that a driver runs."""
    pip = "pip install 'jittor-lora[cuda]'; " if newest >= (13, 0) else ""
    return (f"{pip}Ubuntu, WSL2: apt-get install cuda-toolkit-{newest[0]}-{newest[1]} from NVIDIA's repository; "
            f"conda: conda install -c nvidia cuda-toolkit={newest[0]}.{newest[1]}")


def _parts(found: Cuda) -> str:
    """How to install the headers and libraries that a toolkit lacks."""
    major, minor = found.release
    lacking = [part for part in ("cudart", "cublas", "curand") if any(_belongs(name, part) for name in found.lacking)]
    of_apt = {"cudart": f"cuda-cudart-dev-{major}-{minor}", "cublas": f"libcublas-dev-{major}-{minor}",
              "curand": f"libcurand-dev-{major}-{minor}"}
    of_conda = {"cudart": "cuda-cudart-dev", "cublas": "libcublas-dev", "curand": "libcurand-dev"}
    suffix = "" if major >= 13 else f"-cu{major}"
    of_pip = {"cudart": f"nvidia-cuda-runtime{suffix}", "cublas": f"nvidia-cublas{suffix}",
              "curand": f"nvidia-curand{suffix}"}
    apt, conda, pip = (" ".join(names[part] for part in lacking) for names in (of_apt, of_conda, of_pip))
    return (f"Ubuntu, WSL2: apt-get install {apt} from NVIDIA's repository; conda: conda install -c nvidia {conda}; "
            f"pip: pip install {pip}")


def _belongs(file: str, part: str) -> bool:
    return part in file or (part == "cudart" and file == "cuda_runtime.h")


def _found_cudnn(found: Cuda) -> str:
    return f", found {found.cudnn}" if found.cudnn else ""
