from __future__ import annotations

import pytest

from jittor_lora.data.words import count_words, is_chinese


@pytest.mark.parametrize(("text", "count"), [
    ("", 0), ("... ！", 0), ("In 1,200 (U.S.)", 5),
    ("北京 is", 3), ("二〇〇七年", 5), ("々", 1), ("カタカナ", 4), ("한국 사람", 2),
    ("２０１８年", 2), ("\U00020bb7野家", 3), ("ㄅㄆ", 2),
])
def test_words_are_counted_in_any_script(text, count):
    assert count_words(text) == count


@pytest.mark.parametrize(("texts", "chinese"), [
    (["北京"], True), (["臺灣大學"], True), (["1998"], False), ([], False), (["Nexon和Sega"], False),
    (["韩国Nexon公司"], True),
    (["the 北"], False), (["北京", "is it"], False), (["カタカナの"], False),
])
def test_chinese(texts, chinese):
    assert is_chinese(texts) is chinese
