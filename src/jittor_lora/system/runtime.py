"""Prepares this process for Jittor and imports it, for all other modules: `from jittor_lora.system.runtime import jt`.

Jittor is imported when `jt` is first accessed, so that the other functions here work without it. Besides `job`, this is
the only module that reads the environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib
import os
import platform
import random
import signal
import ssl
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, Iterator, Mapping, NamedTuple

from jittor_lora import __version__
from jittor_lora.errors import UserError
from jittor_lora.files.untrusted import load_json, read_input
from jittor_lora.system import cuda, cuda_home, diagnostics, first_compile, jittor_copy, machine, onednn
from jittor_lora.system.job import MAX_RANKS, Job
from jittor_lora.system.locks import alone
from jittor_lora.system.signals import handlers_kept

LARGEST_NOTE = 1 << 20  # bytes
# What the compiled Jittor depends on, besides the folder of its cache.
MARKED = ("nvcc_path", "nvcc_flags", "cuda_archs", "conv_opt", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "use_mkl",
          "cc_flags", "kernel_flags", "debug", "enable_lto", "python_config_path")
JITTOR_SIGNALS = (signal.SIGINT, signal.SIGCHLD, signal.SIGQUIT)

# Switches that Jittor reads at import. A value exported by the user wins.
DEFAULTS = {
    "log_silent": "1",
    "use_parallel_op_compiler": "0",
    "cache_name": "jittor_lora",  # else the git branch around the virtual environment is in the cache key
    "FIX_TORCH_ERROR": "0",  # else Jittor imports torch if it is installed
    # Threads that wait for each other sleep. Spinning threads take time from whatever else runs, and a step on a shared
    # machine takes five times as long.
    "OMP_WAIT_POLICY": "PASSIVE",
    "gdb_path": "",  # else gdb is started at each import to get its version
    "use_cutt": "0",  # this and the next two are downloaded at import if CUDA is found
    "use_cutlass": "0",
    "use_nccl": "0",
}


# Variables that others set for libraries used here, and that would make their import fail or change numbers: a
# notebook's Matplotlib backend and settings, which the charts do not use; NumPy's type promotion; tqdm's settings,
# which raise if malformed; the folder that Prometheus' counters of several processes go through.
NOT_FOR_LIBRARIES = {"MPLBACKEND": None, "MATPLOTLIBRC": os.devnull, "NPY_PROMOTION_STATE": None,
                     "PROMETHEUS_MULTIPROC_DIR": None, "prometheus_multiproc_dir": None}
BARS, BARS_OFF = "TQDM_", "TQDM_DISABLE"
SECONDS = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")  # huggingface_hub fails if these are not whole numbers


def __getattr__(name: str) -> Any:
    if name == "jt":
        return _import_jittor()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def environment() -> Mapping[str, str]:
    """The process's environment, for modules that must not read it themselves."""
    return os.environ


def jittor_home(environ: Mapping[str, str] = os.environ, home: Path | None = None) -> Path:
    """The folder whose `.cache/jittor` Jittor uses: JITTOR_HOME, else the one in its config.json, else HOME."""
    home = Path.home() if home is None else home
    if environ.get("JITTOR_HOME"):
        return Path(environ["JITTOR_HOME"]).absolute()
    with contextlib.suppress(UserError, ValueError, AttributeError, TypeError):
        noted = load_json(read_input(home / ".cache" / "jittor" / "config.json", LARGEST_NOTE)).get("JITTOR_HOME")
        if noted:
            return Path(noted).absolute()
    return home


def switches(environ: Mapping[str, str], home: Path) -> dict[str, str]:
    """The variables to set before importing Jittor into a cache below `home`, given user's settings and machine."""
    chosen = {name: environ.get(name, value) for name, value in DEFAULTS.items()}
    chosen["use_mpi"] = environ.get("use_mpi", "1" if "OMPI_COMM_WORLD_SIZE" in environ else "0")
    found = cuda.find(environ)
    chosen["nvcc_path"] = str(cuda_home.place(home, found) / "bin" / "nvcc") if found.usable else ""
    if found.cards and not found.usable:
        print(f"CUDA is not used: {found.problem}. `jittor-lora doctor` says how to fix it. To compute on the CPU "
              "without this line: export nvcc_path=", file=sys.stderr)
    # 1: Jittor loads cuBLAS and cuRAND alone. We need no convolutions, but other networks in this process may.
    chosen["conv_opt"] = environ.get("conv_opt", "0" if found.convolutions else "1")
    chosen["use_sfrl_allocator"] = "1"  # without this pool, memory shared by operators is freed early: wrong numbers
    if "python_config_path" not in environ and not any(map(os.path.isfile, machine.jittor_python_configs())):
        chosen["python_config_path"] = machine.python_config()
    cores = max(1, machine.available_cores() // Job.of(environ).local_size)
    if "OMP_NUM_THREADS" not in environ and cores < machine.all_cores():
        chosen["OMP_NUM_THREADS"] = str(cores)
    return chosen


@functools.lru_cache(maxsize=None)
def _import_jittor() -> Any:
    here = Job.of(os.environ)
    if here.size > MAX_RANKS:
        raise UserError(f"mpirun: Jittor's MPI works with up to {MAX_RANKS} ranks, found {here.size}. Start fewer, "
                        "with more threads each.")
    home = jittor_home()
    missing = [check for check in diagnostics.required(os.environ, home) if check.status == diagnostics.MISSING]
    if missing:
        lines = [f"  {check.name}: {check.found}\n      {check.mend}" for check in missing]
        raise UserError("Jittor cannot run yet:\n" + "\n".join(lines) + "\n`jittor-lora doctor` checks the rest.")
    _spread(here)
    os.environ.update(switches(os.environ, home))
    _provide_onednn(home)
    try:
        with _side_effects_undone():
            return _import_compiled(home)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"Jittor cannot be imported: {type(error).__name__}: {error}\n"
                        "Run the same command again; if that does not help, `jittor-lora doctor --deep`.") from error


def _spread(job: Job) -> None:
    """Let a rank run on all cores of the launcher; the ranks' thread counts divide them.

    By default, Open MPI binds each of two ranks to a single core, however many there are.
    """
    if job.several and not job.placed and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, os.sched_getaffinity(os.getppid()))  # the launcher's


def _provide_onednn(home: Path) -> None:
    if os.environ.get("use_mkl", "1") != "1":
        return
    if onednn.is_served():
        onednn.place(home)
    elif "use_mkl" not in os.environ:
        # Otherwise Jittor would download it, which only users who set use_mkl=1 want.
        os.environ["use_mkl"] = "0"
        print(f"oneDNN has no package for {platform.system()} {platform.machine()}: without it, matrix products are "
              "several times slower. Set use_mkl=1 to let Jittor download it.", file=sys.stderr)


@contextlib.contextmanager
def _side_effects_undone() -> Iterator[None]:
    """Undo the side effects of importing Jittor on this process.

    It seeds `random` and `np.random`, turns off HTTPS certificate checks, raises the recursion limit, replaces
    `sys.exit` and `sys.excepthook`, and ends the process when a child is killed.
    """
    import numpy as np

    # Jittor's kernels make the processor flush denormals: unless NumPy measures its limits first, it warns later.
    for kind in (np.float32, np.float64):
        np.finfo(kind)
    python_state, numpy_state = random.getstate(), np.random.get_state()
    # If Jittor was imported before us, the checks are already off.
    https = ssl.create_default_context if "jittor_utils" in sys.modules else ssl._create_default_https_context
    limit, leave, hook = sys.getrecursionlimit(), sys.exit, sys.excepthook
    try:
        with handlers_kept(JITTOR_SIGNALS):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        ssl._create_default_https_context = https
        sys.setrecursionlimit(limit)
        sys.exit, sys.excepthook = leave, hook


def _import_compiled(home: Path) -> Any:
    copy = _place_copy(home)
    chosen = {"HOME": str(home), "JITTOR_HOME": str(home)}
    if copy:
        chosen = {"JITTOR_HOME": str(home), "cc_path": copy.compiler, "python_config_path": str(copy.python_config)}
        if jittor_home({}) != home:  # Jittor would make it the default of all later processes
            chosen["HOME"] = str(copy.private_home)
        os.environ[jittor_copy.INTERPRETER] = sys.executable
    chosen.update(cuda_home.at_import(os.environ))
    environ = {**os.environ, **chosen}
    # By default Jittor forks compiler workers at every import, and hangs after a Ctrl-C in the terminal: that kills the
    # workers too, and Jittor waits for them. And it leaves Ctrl-C alone only in Jupyter.
    with _variables({**chosen, "DISABLE_MULTIPROCESSING": "1", "JPY_PARENT_PID": "1"}):
        with copy.imported_from() if copy else contextlib.nullcontext():
            return _import_in(environ, copy)


def _place_copy(home: Path) -> jittor_copy.Copy | None:
    """The copy of Jittor to import; None for the installed one, if it is already imported or cannot be copied."""
    if sys.platform != "linux" or "jittor_utils" in sys.modules:
        return None
    grouped = not os.environ["nvcc_path"] and os.environ.get("debug") != "1"
    config = os.environ.get("python_config_path") or machine.python_config()
    return jittor_copy.place(home, machine.compiler(os.environ), config, metadata.version("jittor"), grouped)


@contextlib.contextmanager
def undisturbed_libraries() -> Iterator[None]:
    """Hides environment variables that make the import of a library fail, within the block."""
    values = dict(NOT_FOR_LIBRARIES)
    values.update((name, None) for name in os.environ if name.startswith(BARS) and name != BARS_OFF)
    for name in SECONDS:
        value = os.environ.get(name, "")
        if value and not value.isdecimal():
            print(f"{name}: expected a whole number of seconds, found {value!r}; it is not used.", file=sys.stderr)
            values[name] = None
    with _variables(values):
        yield


@contextlib.contextmanager
def _variables(values: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables, or unset those that are None, within the block."""
    before = {name: os.environ.get(name) for name in values}
    _set_variables(values)
    try:
        yield
    finally:
        _set_variables(before)


def _set_variables(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        os.environ.pop(name, None)
        os.environ.update({} if value is None else {name: value})


def _import_in(environ: Mapping[str, str], copy: jittor_copy.Copy | None) -> Any:
    """Import Jittor, after compiling it in a child process with the environment `environ` if necessary."""
    utils = importlib.import_module("jittor_utils")
    mark = first_compile.marker(Path(utils.cache_path), {
        "file": utils.__file__, "compiler": utils.cc_path, **({} if copy else {"python": sys.prefix}),
        **{name: os.environ.get(name, "") for name in MARKED},
    })
    if not first_compile.is_warm(mark):
        # Under mpirun, the child must not join the ranks; the few MPI operators are compiled in this process.
        without_mpi = {name: value for name, value in environ.items() if not name.startswith(("OMPI_", "PMIX_"))}
        with alone(mark.parent / "first_compile.lock", "Compiling Jittor"):  # the ranks of a host share the cache
            if not first_compile.is_warm(mark):
                first_compile.compile_jittor(mark, {**without_mpi, "use_mpi": "0"}, sys.__stderr__,
                                             copy if copy and copy.grouped else None)
    jittor = importlib.import_module("jittor")
    jittor.flags.use_cuda = int(bool(os.environ["nvcc_path"]) and os.environ.get("use_cuda", "1") != "0")
    if os.environ["nvcc_path"]:
        _set_cuda_flags(jittor.flags)
    if copy:
        jittor.flags.python_path = str(copy.python)
    return jittor


def _set_cuda_flags(flags: Any) -> None:
    # Several operators at a time, which nvcc compiles for five seconds each; on the CPU the threads are not worth it.
    flags.use_parallel_op_compiler = min(16, machine.available_cores())
    # Kernels wait for memory, not for exact functions: without this flag, tanh and exp have float32's accuracy.
    flags.nvcc_flags = flags.nvcc_flags.replace(" --use_fast_math ", " ")


class KernelTools(NamedTuple):
    """The tools for compiling our kernels: the compiler and oneDNN that Jittor uses, and its cache folder."""

    compiler: str
    onednn: Path
    cache: Path


def kernel_tools() -> KernelTools:
    """Import Jittor first, which loads oneDNN for the kernels."""
    _import_jittor()
    utils = importlib.import_module("jittor_utils")
    return KernelTools(machine.compiler(os.environ), onednn.folder(jittor_home()), Path(utils.cache_path))


def uses_onednn() -> bool:
    """Whether Jittor multiplies matrices with the oneDNN that our kernels are compiled with."""
    _import_jittor()
    return onednn.is_served() and os.environ.get("use_mkl", "1") == "1"


def threads() -> int:
    """The number of threads that CPU operators may use."""
    return _openmp().omp_get_max_threads()


def set_threads(count: int) -> None:
    """Let operators on the CPU, oneDNN's included, use `count` threads from now on. Call it from the main thread.

    Raises:
        UserError: `count` is not positive.
    """
    if count < 1:
        raise UserError(f"threads: expected 1 or more, found {count}.")
    _openmp().omp_set_num_threads(count)


def free_memory() -> None:
    """Release the memory of unused models: Jittor keeps freed blocks for reuse."""
    gc.collect()
    _import_jittor().gc()


def _openmp() -> ctypes.CDLL:
    _import_jittor()  # loads the OpenMP library of its operators
    return ctypes.CDLL("libgomp.so.1")


def system_info() -> dict[str, Any]:
    """Versions and the machine, for the log of a run; `memory_gib` is physical memory."""
    compiler = machine.compiler(os.environ)
    return {
        "jittor_lora": __version__,
        "jittor": _version("jittor"),
        "python": platform.python_version(),
        "numpy": _version("numpy"),
        "onednn": _version(onednn.LIBRARY),
        "platform": platform.platform(),
        "cpu": machine.cpu_model(),
        "cores": machine.available_cores(),
        "memory_gib": round(machine.total_memory() / 2**30, 1),
        "compiler": f"{compiler} {machine.version_of(compiler)}".strip() if compiler else None,
        "cuda": os.environ.get("nvcc_path") or None,
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
