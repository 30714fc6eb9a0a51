"""Training on two hosts: network namespaces, each with a name and an address, joined by a virtual cable."""

from __future__ import annotations

import fcntl
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import mpi
import small_run
from needs import needs_hosts, needs_mpi

pytestmark = [needs_mpi, needs_hosts]

HOSTS = {"10.213.7.1": "jl-one", "10.213.7.2": "jl-two"}

# Called by mpirun in place of ssh with a host's address and a command. Hides a folder from that host.
AGENT = """#!/bin/sh
case $1 in 10.213.7.1) host=jl-one;; 10.213.7.2) host=jl-two;; *) exit 1;; esac
shift
exec ip netns exec $host unshare --mount --uts sh -c '
    hostname "$1" && mount -t tmpfs none "$2" && shift 2 && exec sh -c "$*"' sh $host {hidden} "$@"
"""


# Jittor's cache is per host name: both hosts use the existing one of this machine.
PROGRAM = """
import platform, sys
platform.node = lambda: {node!r}
from jittor_lora.cli.main import main
sys.exit(main())
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def hosts():
    with open(Path(tempfile.gettempdir()) / "jittor-lora-hosts.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the names are global, and tests run in parallel
        yield from made_hosts()


def made_hosts() -> Iterator[None]:
    try:
        for name in HOSTS.values():
            ip("netns", "add", name)
        ip("link", "add", "jl-cable-1", "netns", "jl-one", "type", "veth", "peer", "name", "jl-cable-2",
           "netns", "jl-two")
        for number, (address, name) in enumerate(HOSTS.items(), 1):
            ip("-n", name, "address", "add", f"{address}/24", "dev", f"jl-cable-{number}")
            ip("-n", name, "link", "set", f"jl-cable-{number}", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        remove_hosts()


def remove_hosts() -> None:
    for name in HOSTS.values():
        subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def on_two_hosts(folder: Path, hidden: Path, *arguments: object) -> tuple[int, str, str]:
    """The command with one rank per host. The second host does not see the folder `hidden`."""
    agent = folder / "agent.sh"
    agent.write_text(AGENT.format(hidden=hidden))
    agent.chmod(0o755)
    program = folder / "program.py"
    program.write_text(PROGRAM.format(node=platform.node()))
    first = ["ip", "netns", "exec", "jl-one", "unshare", "--uts", "sh", "-c", 'hostname jl-one && exec "$@"', "sh"]
    command = mpi.command(2, *arguments, program=program,
                          options=("--host", ",".join(HOSTS), "--mca", "plm_rsh_agent", str(agent)))
    done = subprocess.run([*first, *command], text=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=300,
                          env={**os.environ, **mpi.ENVIRONMENT})
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_two_hosts_give_the_losses_of_one(hosts, tmp_path):
    files = small_run.make_files(tmp_path, 14, 4)
    (files / "runs").mkdir()
    command = ["train", "--base", files / "base", "--data", files / "train.json", "--dev", files / "dev.json",
               "--max-steps", 20, "--batch-size", 8, "--save-every", 10, "--eval-every", 10, "--learning-rate", 0.01,
               "--precision", "fp32"]
    status, _, err = small_run.run(*command, "--output", files / "alone")
    assert status == 0, err
    status, out, err = on_two_hosts(tmp_path, files / "runs", *command, "--output", files / "runs" / "two")
    assert (status, out) == (0, ""), err
    assert "Ranks: 1 on jl-one with " in err and "1 on jl-two with " in err
    two = files / "runs" / "two"
    for name in ("train_loss.txt", "val_loss.txt"):
        np.testing.assert_allclose(np.loadtxt(two / name), np.loadtxt(files / "alone" / name), rtol=1e-5)
    (two / "checkpoints" / "step-00000020.safetensors").unlink()
    before = load_file(two / "adapter" / "adapter_model.safetensors")
    # The run folder is on the first host only.
    status, out, err = on_two_hosts(tmp_path, files / "runs", *command, "--output", two, "--resume")
    assert status == 0 and "Resuming from" in err, err
    after = load_file(two / "adapter" / "adapter_model.safetensors")
    assert all(after[name].tobytes() == before[name].tobytes() for name in before)


@pytest.mark.slow
def test_a_file_missing_on_one_host_is_named_with_the_host(hosts, tmp_path):
    files = small_run.make_files(tmp_path, 4, 1)
    (files / "here").mkdir()
    (files / "train.json").rename(files / "here" / "train.json")
    status, _, err = on_two_hosts(tmp_path, files / "here", "train", "--base", files / "base", "--data",
                                  files / "here" / "train.json", "--output", files / "run", "--max-steps", 2)
    assert status == 2 and err.count("no such file") == 1
    assert "rank 1 on jl-two: jittor-lora: " in err
