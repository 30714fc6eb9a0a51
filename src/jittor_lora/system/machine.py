"""Facts about this machine: processor, memory, compiler, Python headers. Nothing here imports Jittor."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Mapping


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name, or "unknown"."""
    return _cpuinfo_field("model name", cpuinfo) or "unknown"


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Instruction sets such as "avx2", "avx512f", "avx512_bf16", "amx_bf16"; empty if unreadable."""
    return frozenset(_cpuinfo_field("flags", cpuinfo).split())


def multiplies_bf16(flags: frozenset[str]) -> bool:
    """Whether a processor with these instruction sets multiplies bfloat16; without, bf16 is slower than fp32."""
    return bool(flags & {"avx512_bf16", "amx_bf16"})


def _cpuinfo_field(name: str, cpuinfo: Path) -> str:
    try:
        text = cpuinfo.read_text(errors="replace")
    except OSError:
        return ""
    found = re.search(rf"^{name}\s*:\s*(.*)$", text, re.MULTILINE)
    return found.group(1).strip() if found else ""


def available_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores this process may use: its affinity, further limited by a container's CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else all_cores()
    quota = _cpu_quota(cgroup)
    return max(1, min(cores, int(quota + 0.5))) if quota else cores


def _cpu_quota(cgroup: Path) -> float:
    """Cores granted by the control group (version 2, then 1), 0.0 if unlimited."""
    try:
        if (cgroup / "cpu.max").exists():
            limit, period = (cgroup / "cpu.max").read_text().split()
        else:
            limit = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text().strip()
        return 0.0 if limit == "max" or int(limit) <= 0 else int(limit) / int(period)
    except (OSError, ValueError):
        return 0.0


def all_cores() -> int:
    return os.cpu_count() or 1


def is_x86() -> bool:
    return platform.machine() in ("x86_64", "AMD64")


def is_wsl(release: Path = Path("/proc/sys/kernel/osrelease")) -> bool:
    """Whether this is Linux inside of Windows."""
    try:
        return "microsoft" in release.read_text(errors="replace").lower()
    except OSError:
        return False


def total_memory() -> int:
    """Bytes of physical memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def version_of(program: str) -> str:
    """The first version number in the first output of `program --version`; empty if it does not run."""
    try:
        done = subprocess.run([program, "--version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    if done.returncode:
        return ""
    numbers = re.findall(r"\d+\.\d+(?:\.\d+)*", done.stdout.decode(errors="replace"))
    return numbers[0] if numbers else ""


def compiler(environ: Mapping[str, str]) -> str:
    """Path of Jittor's C++ compiler: its variable `cc_path`, else `g++` (`clang++` on macOS); "" if none."""
    name = environ.get("cc_path") or ("clang++" if sys.platform == "darwin" else "g++")
    return shutil.which(name, path=environ.get("PATH")) or ""


def python_config() -> str:
    """`python3.x-config` for this interpreter: where Jittor looks, or beside the base interpreter of a virtual
    environment, where it does not; "" if there is none."""
    return next(filter(os.path.isfile, [*jittor_python_configs(), _base_python_config()]), "")


def jittor_python_configs() -> list[str]:
    """The paths that Jittor tries, in its order (jittor_utils.get_py3_config_path)."""
    minor = sys.version_info.minor
    beside = os.path.dirname(sys.executable)
    return [f"{beside}/python3.{minor}-config", f"{sys.executable}-config", f"/usr/bin/python3.{minor}-config",
            f"/usr/local/bin/python3.{minor}-config", f"{beside}/python3-config"]


def _base_python_config() -> str:
    return os.path.join(sysconfig.get_config_var("BINDIR") or "", f"python3.{sys.version_info.minor}-config")


def has_python_header(config: str) -> bool:
    """Whether one of the folders that `config --includes` names has Python.h."""
    try:
        done = subprocess.run([config, "--includes"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return False
    flags = done.stdout.decode(errors="replace").split()
    return any(os.path.isfile(os.path.join(flag[2:], "Python.h")) for flag in flags if flag.startswith("-I"))
