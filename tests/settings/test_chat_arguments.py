"""Variables of a chat template, on the command line, in recipes and in Python."""

from __future__ import annotations

import pytest
import yaml

from jittor_lora.errors import UserError
from jittor_lora.settings.run import RunConfig

MEANT = {"enable_thinking": False, "level": 2, "share": 0.5, "date_string": "26 Jul 2024"}


def test_they_are_the_same_in_all_forms(tmp_path):
    text = "enable_thinking=false, level=2,share=0.5, date_string=26 Jul 2024"
    assert RunConfig.resolve(None, {"chat_arguments": text}).chat_arguments == MEANT
    config = RunConfig(chat_arguments=MEANT)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(config.recipe()))
    assert RunConfig.resolve(str(tmp_path / "recipe.yaml")) == config


@pytest.mark.parametrize("wrong", ["enable_thinking", "=false", "a b=c", {"a": {"b": 1}}, {"a": []}, 3])
def test_others_are_refused(wrong):
    with pytest.raises(UserError, match="enable_thinking=false"):
        RunConfig(chat_arguments=wrong)
