"""The servers that `serving.py` compares: how each is started, and what a request says to it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

START = 300.0  # seconds until a server must answer


@dataclass
class Server:
    """A process that listens on a port of loopback.

    Args:
        name: in tables.
        command: {port} stands for the port.
        bodies: what a request says to use the base alone, then for each adapter.
        extra: what every request of completions says besides.
        answers: whether it has /v1/answers.
        environment: variables to set, or to remove if None.
    """

    name: str
    command: Sequence[str]
    bodies: Sequence[dict[str, Any]]
    extra: dict[str, Any] = field(default_factory=dict)
    answers: bool = False
    environment: dict[str, str | None] = field(default_factory=dict)
    process: subprocess.Popen | None = None
    address: str = ""

    def body(self, adapter: int | None) -> dict[str, Any]:
        return {**self.extra, **self.bodies[0 if adapter is None else adapter + 1]}

    def start(self, log: Path, port: int | None = None) -> None:
        """Start it and wait until it answers.

        Raises:
            RuntimeError: it ends, or does not answer in time.
        """
        port = port or free_port()
        self.address = f"http://127.0.0.1:{port}"
        variables = {**os.environ, **self.environment}
        with open(log, "ab") as stream:
            self.process = subprocess.Popen(
                [word.replace("{port}", str(port)) for word in self.command], stdin=subprocess.DEVNULL, stdout=stream,
                stderr=stream, start_new_session=True,
                env={name: value for name, value in variables.items() if value is not None})
        until = time.monotonic() + START
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise RuntimeError(f"ended with code {self.process.returncode}; see {log}")
            try:
                if httpx.get(f"{self.address}/v1/models", timeout=5.0, trust_env=False).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        self.stop()
        raise RuntimeError(f"did not answer within {START:.0f} s; see {log}")

    def hold(self) -> None:
        """Keep it from running while another is measured."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
        if self.process:
            self.process.wait()

    def use(self) -> dict[str, float]:
        """Processor time so far in seconds, resident memory and its peak in MiB, threads and open files."""
        place = Path("/proc", str(self.process.pid))
        times = (place / "stat").read_text().rpartition(")")[2].split()
        status = dict(re.findall(r"^(VmHWM|VmRSS|Threads):\s*(\d+)", (place / "status").read_text(), re.MULTILINE))
        return {"cpu_seconds": (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK"),
                "rss_mib": int(status["VmRSS"]) / 1024, "peak_mib": int(status["VmHWM"]) / 1024,
                "threads": int(status["Threads"]), "files": len(os.listdir(place / "fd"))}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def ours(base: str, adapters: Sequence[Path], threads: int, flags: Sequence[str] = ()) -> Server:
    """`jittor-lora serve` with these adapters by the names of their folders."""
    command = [sys.executable, "-m", "jittor_lora", "serve", "--base", base, "--port", "{port}", "--threads",
               str(threads), *(word for path in adapters for word in ("--adapter", f"{path.name}={path}")), *flags]
    return Server("jittor-lora", command, [{}, *({"model": path.name} for path in adapters)], answers=True,
                  environment={"OMP_NUM_THREADS": None, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})


def llama_cpp(program: str, name: str, model: Path, adapters: Sequence[Path], threads: int, slots: int, tokens: int,
              flags: Sequence[str]) -> Server:
    """llama.cpp's `llama-server`: a slot per request, adapters chosen by each request.

    Args:
        adapters: GGUF files.
        tokens: most per request.
    """
    command = [program, "--model", str(model), "--port", "{port}", "--threads", str(threads), "--threads-batch",
               str(threads), "--parallel", str(slots), "--ctx-size", str(slots * tokens), *flags]
    if adapters:
        command += ["--lora", ",".join(map(str, adapters)), "--lora-init-without-apply"]
    chosen = [{"lora": [{"id": i, "scale": 1.0}]} for i in range(len(adapters))]
    none = {"lora": [{"id": 0, "scale": 0.0}]} if adapters else {}  # otherwise all of them are applied together
    return Server(name, command, [none, *chosen], {"cache_prompt": True},
                  environment={"OMP_NUM_THREADS": None})


def llama_cpp_python(python: str, name: str, model: Path, adapters: Sequence[Path], threads: int,
                     tokens: int) -> Server:
    """llama-cpp-python's server: one request at a time, one adapter from the start on."""
    command = [python, "-m", "llama_cpp.server", "--model", str(model), "--port", "{port}", "--n_threads", str(threads),
               "--n_threads_batch", str(threads), "--n_ctx", str(tokens), "--interrupt_requests", "false",
               "--flash_attn", "true", "--cache", "true"]
    if adapters:
        command += ["--lora_path", str(adapters[0])]
    return Server(name, command, [{}] * 2, environment={"OMP_NUM_THREADS": None, "PYTHONPATH": None})


def mlx(python: str, name: str, model: Path, adapters: Sequence[Path], slots: int, blas: str | None) -> Server:
    """mlx-lm's server: requests with the same adapter advance together; another adapter loads the model again.

    Args:
        model: a Hugging Face folder.
        adapters: folders in mlx-lm's format.
        blas: a library to take in place of its own.
    """
    command = [python, "-m", "mlx_lm", "server", "--model", str(model), "--port", "{port}", "--log-level", "ERROR",
               "--decode-concurrency", str(slots), "--prompt-concurrency", str(min(slots, 8))]
    chosen = [{"model": str(model), "adapters": str(path)} for path in adapters]
    return Server(name, command, [{"model": "default_model"}, *chosen], {"temperature": 0.0},
                  environment={"OMP_NUM_THREADS": None, "PYTHONPATH": None, "HF_HUB_OFFLINE": "1", "LD_PRELOAD": blas})
