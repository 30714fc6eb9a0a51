import pytest

from cuda_toolkits import driver
from jittor_lora.system.check import MISSING, OK, WARNING
from jittor_lora.system.cuda import Cuda
from jittor_lora.system.cuda_checks import check_cuda, check_driver
from jittor_lora.system.cuda_driver import Driver

NO_DRIVER = Driver(problem="no NVIDIA driver")


@pytest.mark.parametrize("found, asked, status", [
    (Cuda(problem="no nvcc found", driver=NO_DRIVER), False, OK),
    (Cuda(problem="no nvcc found", driver=driver()), False, WARNING),
    (Cuda("/bin/nvcc", problem="no driver", driver=NO_DRIVER), False, WARNING),
    (Cuda("/bin/nvcc", problem="no driver", driver=NO_DRIVER), True, MISSING),
    (Cuda(problem="no nvcc found", driver=NO_DRIVER), True, MISSING),
    (Cuda("/bin/nvcc", "12.2", driver=driver()), True, OK)])
def test_status(found, asked, status):
    check = check_cuda(found, asked)
    assert check.status == status
    assert bool(check.mend) == (status != OK)


@pytest.mark.parametrize("found, parts", [
    (Cuda(problem="no nvcc found", driver=driver((12, 4))), ["cuda-toolkit-12-4", "conda", "cuda-toolkit=12.4"]),
    (Cuda(problem="no nvcc found", driver=driver((13, 0))), ["pip install 'jittor-lora[cuda]'", "cuda-toolkit-13-0"]),
    (Cuda("/n", "12.4", lacking=("libcurand.so", "cublas_v2.h"), problem="…", driver=driver()),
     ["apt-get install libcublas-dev-12-4 libcurand-dev-12-4", "conda install -c nvidia libcublas-dev libcurand-dev",
      "pip install nvidia-cublas-cu12 nvidia-curand-cu12"]),
    (Cuda("/n", "13.0", lacking=("libcudart.so",), problem="…", driver=driver()), ["pip install nvidia-cuda-runtime"]),
    (Cuda("/n", "13.0", problem="…", driver=driver((12, 4))), ["newer driver", "CUDA 12.4", "cuda-toolkit-12-4"]),
    (Cuda("/n", "13.0", problem="…", archs=(75, 80), driver=driver((13, 0), 6.1)), ["cuda-toolkit-12-9"]),
    (Cuda("/n", "11.8", problem="…", gcc="13.2.0", newest_gcc=11, driver=driver()),
     ["apt-get install g++-11", "cc_path=/usr/bin/g++-11"]),
])
def test_how_to_fix_it(found, parts):
    mend = check_cuda(found, asked=False).mend
    for part in parts:
        assert part in mend
    assert "ignore this" in mend
    assert "export nvcc_path=" in check_cuda(found, asked=True).mend


@pytest.mark.parametrize("cudnn, convolutions, text", [
    ("", False, "need cuDNN 8"), ("9.1.0", False, "need cuDNN 8, found 9.1.0"), ("8.9.7", True, "cuDNN 8.9.7 for")])
def test_cudnn_is_named(cudnn, convolutions, text):
    found = Cuda("/n", "12.4", driver=driver(), cudnn=cudnn, convolutions=convolutions)
    assert text in check_cuda(found, asked=False).found


@pytest.mark.parametrize("capability, series", [(7.5, "RTX 20"), (8.6, "RTX 30"), (8.9, "RTX 40"), (9.0, "H100"),
                                                (12.0, "compute capability 12.0, as RTX 50")])
def test_cards_are_named_with_capability_and_memory(capability, series):
    check = check_driver(driver((12, 8), capability), wanted=True, wsl=False)
    assert check.status == OK
    for part in ("NVIDIA GeForce", series, "8.0 GiB", "CUDA up to 12.8"):
        assert part in check.found


def test_a_card_of_the_future_has_no_series():
    assert "(compute capability 13.0; 8.0 GiB)" in check_driver(driver((14, 0), 13.0), True, False).found


@pytest.mark.parametrize("wanted, wsl, status, part", [(False, False, OK, ""), (True, False, WARNING, "--gpus all"),
                                                       (True, True, WARNING, "driver in Windows")])
def test_without_a_driver(wanted, wsl, status, part):
    check = check_driver(NO_DRIVER, wanted, wsl)
    assert check.status == status
    assert part in check.mend


def test_a_wrong_path_of_nvcc():
    said = check_cuda(Cuda(problem="no nvcc found", driver=NO_DRIVER), True)
    assert said.status == MISSING and "nvcc's file, such as /usr/local/cuda/bin/nvcc; or set it empty" in said.mend
