from __future__ import annotations

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen


@pytest.fixture
def make_font(tmp_path):
    """make_font(characters, family, style) -> path of a TrueType font with only these characters, as squares."""
    def make(characters, family="Test Sans", style="Regular"):
        pen = TTGlyphPen(None)
        for number, point in enumerate([(100, 0), (100, 700), (800, 700), (800, 0)]):
            (pen.lineTo if number else pen.moveTo)(point)
        pen.closePath()
        square = pen.glyph()
        names = {ord(character): f"uni{ord(character):06X}" for character in characters}
        glyphs = [".notdef", *names.values()]
        builder = FontBuilder(1000, isTTF=True)
        builder.setupGlyphOrder(glyphs)
        builder.setupCharacterMap(names)
        builder.setupGlyf(dict.fromkeys(glyphs, square))
        builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 100)))
        builder.setupHorizontalHeader(ascent=800, descent=-200)
        builder.setupNameTable({"familyName": family, "styleName": style})
        builder.setupOS2()
        builder.setupPost()
        path = tmp_path / f"{family}-{style}-{len(characters)}.ttf".replace(" ", "")
        builder.save(path)
        return path
    return make
