"""Writes tests/golden/adapters.npz: adapters that mlx-lm and litgpt trained, and what these compute with them.

    python tests/parity/make_adapters.py CASE PYTHON …

CASE is one of `CASES`, PYTHON a Python that has the program in its version. Other cases in the file stay as they are.
Its arrays: "<case>/<name of a file>", the file's bytes, and "<case>/logits" (24, 61) of `tiny.tokens(24)`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import model_files  # noqa: E402
import tiny  # noqa: E402

GOLDEN = HERE.parent / "golden" / "adapters.npz"
KEYS = "self_attn.q_proj,self_attn.k_proj,mlp.down_proj"
# Case → program, variant of the base, and the arguments of its training after the folders
CASES = {
    "mlx-lora": ("mlx_peer.py", "llama", ("lora", 3, 2.5, 1, KEYS)),
    "mlx-dora": ("mlx_peer.py", "llama", ("dora", 2, 0.5, 2, KEYS)),
    "mlx-gpt2": ("mlx_peer.py", "gpt2", ("lora", 2, 2.5, 1, "attn.c_attn,mlp.c_proj")),
    "litgpt-qv": ("litgpt_peer.py", "llama", (2, 8, "lora_query,lora_value,lora_projection")),
    "litgpt-all": ("litgpt_peer.py", "llama", (2, 5, "lora_query,lora_key,lora_value,lora_mlp,lora_head")),
    "litgpt-0.4-qv": ("litgpt_peer.py", "llama", (2, 8, "lora_query,lora_value")),
    "litgpt-0.4-all": ("litgpt_peer.py", "llama", (2, 8, "lora_query,lora_key,lora_value")),
}


def spelled_out(variant: str) -> dict:
    """config.json with the settings that these programs have no defaults for."""
    more = {"layer_norm_epsilon": 1e-5, "n_ctx": 48} if variant.startswith("gpt2") else {
        "rms_norm_eps": 1e-6, "rope_theta": 1e4}
    return {**more, **tiny.VARIANTS[variant]}


def make_base(folder: Path, variant: str) -> Path:
    """mlx-lm knows GPT-2's tensors by the names they have on the Hub, without `transformer.`."""
    source = spelled_out(variant)
    model_files.make_folder(folder, source, {name.replace("transformer.", "", 1): array
                                             for name, array in tiny.tensors(source).items()})
    return folder


def run(python: str, program: str, *arguments: object) -> None:
    done = subprocess.run([python, str(HERE / "peers" / program), *map(str, arguments)], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


def logits(python: str, program: str, base: Path, adapter: Path, tokens: np.ndarray) -> np.ndarray:
    np.save(base / "tokens.npy", tokens)
    run(python, program, "logits", base, adapter, base / "tokens.npy", base / "logits.npy")
    return np.load(base / "logits.npy")


def trained(case: str, python: str, folder: Path) -> tuple[Path, np.ndarray]:
    """The folder of an adapter that the program trained, and its logits."""
    program, variant, arguments = CASES[case]
    base = make_base(folder / "base", variant)
    run(python, program, "train", base, folder / "adapter", *arguments)
    return folder / "adapter", logits(python, program, base, folder / "adapter", tiny.tokens(24))


if __name__ == "__main__":
    made = dict(np.load(GOLDEN)) if GOLDEN.exists() else {}
    for case, python in zip(sys.argv[1::2], sys.argv[2::2]):
        made = {name: array for name, array in made.items() if not name.startswith(f"{case}/")}
        with tempfile.TemporaryDirectory() as work:
            folder, found = trained(case, python, Path(work))
            made.update({f"{case}/{path.name}": np.frombuffer(path.read_bytes().replace(work.encode(), b"work"),
                                                              np.uint8)
                         for path in sorted(folder.iterdir()) if not path.name.startswith("0")})
            made[f"{case}/logits"] = found
        np.savez_compressed(GOLDEN, **made)
        print(case)
