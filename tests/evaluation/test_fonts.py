from __future__ import annotations

import pytest
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

from jittor_lora.errors import UserError
from jittor_lora.evaluation.fonts import find_font

CHINESE = "\u8bad\u7ec3\u635f\u5931"


@pytest.fixture
def system_fonts(monkeypatch):
    """Make the given font files this machine's only fonts."""
    return lambda *paths: monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(path) for path in paths])


def test_english_needs_no_system_font(system_fonts):
    system_fonts()
    assert FT2Font(find_font(["Loss 1.5 \u2013 \u00e9"], "en").get_file()).family_name == "DejaVu Sans"


def test_english_with_chinese_in_the_title_looks_for_a_font_that_has_both(system_fonts, make_font):
    partial, whole = make_font("\u8bad"), make_font("Loss" + CHINESE)
    system_fonts(partial, whole)
    assert find_font(["Loss", CHINESE], "en").get_file() == str(whole)


def test_known_families_and_regular_styles_come_first(system_fonts, make_font):
    other = make_font(CHINESE, "AAA")
    bold = make_font(CHINESE, "Noto Sans SC", "Bold")
    regular = make_font(CHINESE, "Noto Sans SC")
    zen_hei = make_font(CHINESE, "WenQuanYi Zen Hei")
    system_fonts(other, bold, zen_hei, regular)
    assert find_font([CHINESE], "zh").get_file() == str(regular)
    system_fonts(other, zen_hei)
    assert find_font([CHINESE], "zh").get_file() == str(zen_hei)
    system_fonts(other)
    assert find_font([CHINESE], "zh").get_file() == str(other)


def test_a_family_with_the_right_name_but_without_the_glyphs_is_skipped(system_fonts, make_font):
    system_fonts(make_font(CHINESE[:2], "Noto Sans SC"), make_font(CHINESE, "Test"))
    assert "Test" in find_font([CHINESE], "zh").get_file()


def test_damaged_system_fonts_are_skipped(system_fonts, make_font, tmp_path):
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    system_fonts(tmp_path / "broken.ttf", tmp_path / "gone.ttf", make_font(CHINESE))
    assert find_font([CHINESE], "zh").get_file().endswith("TestSans-Regular-4.ttf")


def test_without_a_font_the_message_says_what_to_install(system_fonts, make_font):
    system_fonts(make_font("abc"))
    with pytest.raises(UserError) as caught:
        find_font(["abc", CHINESE], "zh")
    for part in ("\u8bad", "fonts-noto-cjk", "fonts-wqy-zenhei", "--font FILE", "--language en"):
        assert part in str(caught.value)


def test_given_font_is_used_and_checked(system_fonts, make_font, tmp_path):
    system_fonts(make_font(CHINESE, "Noto Sans SC"))
    mine = make_font(CHINESE, "Mine")
    assert find_font([CHINESE], "zh", mine).get_file() == str(mine)
    with pytest.raises(UserError, match="lacks 2 characters of the labels \\(\u5931 \u635f\\)"):
        find_font([CHINESE], "zh", make_font(CHINESE[:2]))
    with pytest.raises(UserError, match="no such font file"):
        find_font([CHINESE], "zh", tmp_path / "none.ttf")
    (tmp_path / "text.ttf").write_text("no font")
    with pytest.raises(UserError, match="cannot be read as a font"):
        find_font([CHINESE], "zh", tmp_path / "text.ttf")
