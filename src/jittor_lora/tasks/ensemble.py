"""Several adapters of one base that answer together."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any

from jittor_lora.data.prompting import Prompting
from jittor_lora.errors import UserError
from jittor_lora.formats.adapter_source import AdapterSource

if TYPE_CHECKING:
    from jittor_lora.session import Session


def load_ensemble(session: Session, others: Sequence[AdapterSource]) -> tuple[str, ...]:
    """Load further adapters beside the active one. Returns the names of all, the active one's first; none without
    others.

    Raises:
        UserError: one cannot be loaded, or they learnt different prompts: they all read the same one.
    """
    if not others:
        return ()
    names = [session.adapter.name]
    for number, source in enumerate(others, 2):
        names.append(f"{names[0]}-{number}")
        session.load_adapter(source, names[-1])
    learnt = [_learnt(session.promptings.get(name)) for name in names]
    known = next((one for one in learnt if one), {})
    wrong = [f"{source}: another {' and '.join(name for name in one if one[name] != known[name])}"
             for source, one in zip(others, learnt[1:]) if one and one != known]
    if wrong:
        raise UserError("\n  ".join(["--ensemble: all adapters read the same prompt, but some were not trained with "
                                     "prompts like the first one's:", *wrong]) +
                        "\nName adapters that were trained alike.")
    return tuple(names)


def learnt_smoothing(session: Session, names: Sequence[str] = ()) -> float:
    """The label smoothing that an ensemble has learnt, the mean of its adapters', as its probabilities are; without
    `names` that of the active adapter, or of the base without one."""
    if not names:
        return session.prompting.label_smoothing
    return mean(session.promptings.get(name, session.base_prompting).label_smoothing for name in names)


def _learnt(prompting: Prompting | None) -> dict[str, Any]:
    """What the prompts of an adapter's training depend on, by name; nothing if that is not known."""
    if prompting is None:
        return {}
    chat = prompting.chat
    return {"template": prompting.template, "meaning of special tokens": prompting.special_tokens,
            "kind of example": prompting.conversations, "chat template": chat and (chat.source, chat.arguments)}
