"""Parquet, through pyarrow, which is an extra."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jittor_lora.data.text_file import Offenders
from jittor_lora.errors import UserError
from jittor_lora.files.untrusted import LARGEST, open_input

MAGIC = b"PAR1"
INSTALL = "pip install 'jittor-lora[parquet]'"
_BATCH = 256  # rows
_SAFE = (14, 0, 1)  # earlier versions may run code that a file contains (CVE-2023-47248)


def is_parquet(path: Path) -> bool:
    """Whether a file starts like parquet.

    Raises:
        UserError: it cannot be read.
    """
    with open_input(path) as stream:
        return stream.read(len(MAGIC)) == MAGIC


class Parquet:
    """The records of a parquet file, decoded batch by batch; at most 1 GiB of them.

    Args:
        path: the file.
        shown: its name in messages.
        wanted: the fields to decode, if there are some of them; otherwise all are.

    Raises:
        UserError: pyarrow is missing or unsafe, or the file is damaged.
    """

    kind = "parquet"

    def __init__(self, path: Path, shown: str, wanted: Collection[str] = ()):
        self._path, self._shown, self._library = path, shown, _pyarrow(shown)
        with self._opened() as file:
            self.header = list(file.schema_arrow.names)
        self._wanted = [name for name in self.header if name in wanted] or None

    def records(self, offenders: Offenders) -> Iterator[tuple[str, Any]]:
        """(place, field -> value) of each row; nulls are left out.

        Raises:
            UserError: the file is damaged or too large.
        """
        number = size = 0
        with self._opened() as file:
            batches = file.iter_batches(batch_size=_BATCH, columns=self._wanted, use_threads=False)
            while True:
                with self._reported():
                    batch = next(batches, None)
                    rows = batch.to_pylist() if batch is not None else []
                    size += batch.nbytes if batch is not None else 0
                if batch is None:
                    return
                if size > LARGEST:
                    raise UserError(f"{self._shown}: expected at most {LARGEST:,} bytes of data; found more. Use a "
                                    "part of it.")
                for row in rows:
                    number += 1
                    yield f"row {number:,}", {name: value for name, value in row.items() if value is not None}

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        with open_input(self._path) as stream:
            with self._reported():
                file = self._library.parquet.ParquetFile(stream)
            yield file

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Errors of the library as a `UserError`."""
        try:
            yield
        except (self._library.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError,
                MemoryError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:160]
            raise UserError(f"{self._shown}: not a whole parquet file ({reason}). Copy or download it again."
                            ) from error


def _pyarrow(shown: str) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{shown}: a parquet file is read with pyarrow, which is not installed or does not work here "
                        f"({error}): {INSTALL}, or convert the file to JSON Lines.") from error
    version = tuple(int(part) for part in pyarrow.__version__.split(".")[:3] if part.isdigit())
    if version < _SAFE:
        raise UserError(f"{shown}: reading an untrusted file with pyarrow {pyarrow.__version__} is not safe "
                        f"(CVE-2023-47248): {INSTALL}")
    return pyarrow
