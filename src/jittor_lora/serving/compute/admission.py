"""Which works run: as many as there is room for, in order. Each begins after the tokens whose keys and values are
known."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from jittor_lora.data.encoding import common
from jittor_lora.errors import UserError
from jittor_lora.inference.prefix_cache import PrefixCache
from jittor_lora.inference.steps import Work


@dataclass(eq=False)
class _Entry:
    """A work, and whose keys and values it reads.

    Attributes:
        size: bytes of its keys and values.
        stored: tokens of its prefix that are in the cache.
    """

    owner: Optional[str]
    work: Work
    size: int = 0
    stored: int = 0

    @property
    def key(self) -> tuple:
        return self.owner, tuple(self.work.prefix)

    @property
    def reading(self) -> bool:
        return self.work.read < len(self.work.prefix)


class Admission:
    """
    Args:
        most: texts that advance together.
        limit: bytes of keys and values of running works; a single one always runs.
        cache: bytes of keys and values kept for prefixes that come again.
    """

    def __init__(self, most: int, limit: int, cache: int):
        self._most, self._limit, self.cache = most, limit, PrefixCache(cache)
        self._pending: deque[_Entry] = deque()
        self._live: list[_Entry] = []
        self._whole: dict[tuple, list[_Entry]] = {}  # running works whose prefix has been read, by their key

    @property
    def live(self) -> list[Work]:
        return [entry.work for entry in self._live]

    @property
    def advancing(self) -> int:
        """Texts that advance together now."""
        return sum(entry.work.advancing for entry in self._live)

    @property
    def has_room(self) -> bool:
        """May more works be added? Those that are not admitted hold up the ones after them."""
        return self.advancing + sum(entry.work.advancing for entry in self._pending) < self._most

    def check(self, works: Sequence[Work]) -> None:
        """
        Raises:
            UserError: a work needs more memory than there is for all.
        """
        largest = max(map(_size, works), default=0)
        if largest > self._limit:
            raise UserError(f"The request needs {largest / 2**20:,.0f} MiB for keys and values; the server has "
                            f"{self._limit / 2**20:,.0f} MiB for them. Ask for fewer or shorter texts.")

    def add(self, owner: Optional[str], work: Work) -> None:
        self._pending.append(_Entry(owner, work))

    def admit(self) -> list[tuple[Work, int]]:
        """Open works while there is room; returns each with how many tokens of its prefix were known."""
        opened, later = [], deque()
        while self._pending:
            entry = self._pending[0]
            work = entry.work
            if self._live and (self.advancing + work.advancing > self._most
                               or sum(other.size for other in self._live) + _size(work) > self._limit):
                break
            self._pending.popleft()
            if self._is_being_read(entry):
                later.append(entry)
            else:
                opened.append((work, self._open(entry)))
        later.extend(self._pending)
        self._pending = later
        return opened

    def keep(self) -> list[Work]:
        """After a step: keep what has been read of prefixes, and let complete works go; returns those."""
        for entry in self._live:
            work, read = entry.work, entry.work.read
            if entry.stored < len(work.prefix) and work.group is not None:
                whole = read if not entry.reading else read - read % work.reader.block_rows
                if whole > entry.stored:
                    self.cache.store(entry.owner, work.prefix[:whole], work.reader, work.group)
                    entry.stored = whole
                    if not entry.reading:
                        self._whole.setdefault(entry.key, []).append(entry)
        ended = [entry for entry in self._live if entry.work.complete]
        self._leave(ended)
        return [entry.work for entry in ended]

    def remove(self, works: Sequence[Work]) -> None:
        """Give works up."""
        gone = {id(work) for work in works}
        self._pending = deque(entry for entry in self._pending if id(entry.work) not in gone)
        self._leave([entry for entry in self._live if id(entry.work) in gone])

    def _leave(self, entries: Sequence[_Entry]) -> None:
        for entry in entries:
            self._live.remove(entry)
            same = self._whole.get(entry.key, [])
            if entry in same:
                same.remove(entry)
                if not same:
                    del self._whole[entry.key]

    def _open(self, entry: _Entry) -> int:
        work, known, place = entry.work, 0, len(self._live)
        entry.size = _size(work)
        same = [] if work.reads_all or not work.prefix else self._whole.get(entry.key, [])
        if same:
            known, place = len(work.prefix), self._live.index(same[-1]) + 1  # beside those it shares with
            work.open(work.reader.join(same[-1].work.group, work.rooms), known)
            entry.size -= len(work.prefix) * work.reader.row_bytes
            same.append(entry)
        else:
            group = work.reader.open(len(work.prefix), work.rooms)
            if not work.reads_all:
                known = self.cache.fetch(entry.owner, work.prefix, work.reader, group)
            work.open(group, known)
            if known and not entry.reading:
                self._whole.setdefault(entry.key, []).append(entry)
        entry.stored = known
        self._live.insert(place, entry)
        return known

    def _is_being_read(self, entry: _Entry) -> bool:
        """Whether a running work is reading what this one would have to read."""
        work = entry.work
        if work.reads_all or entry.key in self._whole:
            return False
        known = None
        for other in self._live:
            if other.owner == entry.owner and other.reading:
                same = common(work.prefix, other.work.prefix)
                if known is None:
                    known = self.cache.length(entry.owner, work.prefix)
                whole = same == len(work.prefix) == len(other.work.prefix)
                if same - known >= work.reader.block_rows or whole and same > known:
                    return True
        return False


def _size(work: Work) -> int:
    """Bytes of the keys and values of a work's texts, if they get as long as they may."""
    block = work.reader.block_rows
    rows = sum(-(-rows // block) * block for rows in (len(work.prefix), *work.rooms))
    return rows * work.reader.row_bytes
