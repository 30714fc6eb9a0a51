"""The operations as kernels for NVIDIA GPUs."""

from pathlib import Path


def kernels_folder() -> Path:
    """The kernels' sources."""
    return Path(__file__).parent / "kernels"
