"""Finds a font with every character of a chart's labels, so that none shows as an empty box."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import matplotlib
from matplotlib import font_manager
from matplotlib.font_manager import FontProperties
from matplotlib.ft2font import FT2Font

from jittor_lora.errors import UserError

# Sans-serif families with simplified Chinese glyphs, best looking first. "CJK JP" is all that Matplotlib before 3.11,
# which reads only the first face of a collection, sees of Noto Sans CJK.
_CHINESE_FAMILIES = (
    "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN", "PingFang SC", "Microsoft YaHei",
    "Hiragino Sans GB", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Heiti SC", "STHeiti", "SimHei", "Sarasa Gothic SC",
    "Noto Sans CJK JP", "Noto Sans CJK TC", "Source Han Sans", "Droid Sans Fallback", "Arial Unicode MS",
)
_MATPLOTLIB_FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


def find_font(texts: Iterable[str], language: str, font: str | os.PathLike | None = None) -> FontProperties:
    """A font with a glyph for each character of `texts`.

    Args:
        language: "zh" prefers fonts with Chinese glyphs, "en" the one that ships with Matplotlib.
        font: the font file to use, and no other.

    Raises:
        UserError: `font` cannot be read or lacks characters, or no font on this machine has them all.
    """
    needed = {character for text in texts for character in text if not character.isspace()}
    if font is not None:
        return _font_of(Path(font), needed, language)
    if language == "en" and not _missing(FT2Font(str(_MATPLOTLIB_FONT)), needed):
        return FontProperties(fname=str(_MATPLOTLIB_FONT))
    # Matplotlib's own list is cached on disk and misses fonts installed since, so the system is asked each time.
    faces = sorted(face for path in font_manager.findSystemFonts() for face in _faces(path))
    for _, path, index in faces:
        if not _missing(_open(path, index), needed):
            return _properties(path, index)
    raise UserError(
        f"No font on this machine has all characters of the labels ({_listed(needed - _ascii())}). Install one with "
        "Chinese characters: `apt install fonts-noto-cjk` or `apt install fonts-wqy-zenhei` on Debian and Ubuntu, "
        "`dnf install google-noto-sans-cjk-fonts` on Fedora; or name a font file with --font FILE; or use "
        "--language en.")


def _font_of(path: Path, needed: set[str], language: str) -> FontProperties:
    if not path.is_file():
        raise UserError(f"{path}: no such font file (.ttf, .otf or .ttc). Name one with --font FILE.")
    faces = sorted(_faces(str(path)))
    if not faces:
        raise UserError(f"{path}: cannot be read as a font (.ttf, .otf or .ttc). Name another with --font FILE.")
    if language == "en":
        faces.sort(key=lambda face: face[2])
    for _, _, index in faces:
        missing = _missing(_open(str(path), index), needed)
        if not missing:
            return _properties(str(path), index)
    raise UserError(f"{path}: this font lacks {len(missing)} characters of the labels ({_listed(missing)}). "
                    "Name another with --font FILE, or use --language en.")


def _faces(path: str) -> Iterator[tuple[tuple[int, bool, bool], str, int]]:
    """(preference, path, index) of each usable face of a font file; smaller is preferred."""
    try:
        first = FT2Font(path)
    except (RuntimeError, OSError, ValueError):  # a damaged or bitmap-only system font
        return
    if not first.scalable:
        return
    for index in range(first.num_faces if _knows_collections() else 1):
        face = _open(path, index)
        family = face.family_name
        rank = _CHINESE_FAMILIES.index(family) if family in _CHINESE_FAMILIES else len(_CHINESE_FAMILIES)
        irregular = face.style_name.lower() not in ("regular", "normal", "book", "medium", "w3")
        yield (rank, irregular, "serif" in family.lower()), path, index


def _knows_collections() -> bool:
    """Whether Matplotlib can use faces of a collection beyond the first (3.11 and later)."""
    return hasattr(font_manager, "FontPath")


def _open(path: str, index: int) -> FT2Font:
    return FT2Font(path, face_index=index) if index else FT2Font(path)


def _properties(path: str, index: int) -> FontProperties:
    return FontProperties(fname=font_manager.FontPath(path, index) if index else path)


def _missing(font: FT2Font, needed: set[str]) -> set[str]:
    return {character for character in needed if font.get_char_index(ord(character)) == 0}


def _ascii() -> set[str]:
    return set(map(chr, range(128)))


def _listed(characters: set[str]) -> str:
    shown = sorted(characters)[:12]
    return " ".join(shown) + (" …" if len(characters) > len(shown) else "")
