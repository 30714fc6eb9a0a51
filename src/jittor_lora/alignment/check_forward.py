"""The checks of the first forward pass, module by module, and of its loss."""

from __future__ import annotations

from typing import Optional, Sequence

from jittor_lora.alignment.distance import arrays_apart, largest, origin, relative_number
from jittor_lora.alignment.record import Record
from jittor_lora.alignment.result import Check, made, not_compared

INPUT, OUTPUT, LOGITS = "input.", "output.", "logits"
# Last parts of the names of modules → what is computed between the module before and them.
_BETWEEN = {"attn.c_proj": "attention", "self_attn.o_proj": "rotary_attention", "mlp.c_proj": "activation",
            "mlp.down_proj": "gate", "ln_1": "residual", "ln_2": "residual", "ln_f": "residual",
            "input_layernorm": "residual", "post_attention_layernorm": "residual", "norm": "residual"}
_NEARLY_ALL = 0.8  # of the tokens of a batch
_EMBEDDINGS = {"wte": "tokens", "embed_tokens": "tokens", "wpe": "positions"}


def check_activations(here: Record, there: Record, most: float) -> Check:
    """Inputs and outputs of the base's modules, and logits, for the first example."""
    ours, theirs = here.first_step, there.first_step
    names = [name for name in ours if name.startswith((INPUT, OUTPUT)) and name in theirs]
    if LOGITS in ours or LOGITS in theirs:
        names.append(LOGITS)
    if not names:
        return not_compared("activations", most, "no_activations")
    # Each against its own norm: inputs and outputs of different modules are of no common size.
    rows = tuple(row for name in names for row in arrays_apart(ours, theirs, [name]))
    at = origin([value for _, value in rows], most)
    if at is None:
        return made("activations", most, rows, largest(rows)[0])
    name = names[at]
    module = name.partition(".")[2]
    if name not in ours or name not in theirs:
        return made("activations", most, rows, name, "only_there" if name not in ours else "only_here")
    if ours[name].shape != theirs[name].shape:
        return made("activations", most, rows, module or name, "shapes", here=str(ours[name].shape),
                    there=str(theirs[name].shape))
    before = _module_before(names[:at])
    if name.startswith(OUTPUT):
        return made("activations", most, rows, module, _inside(module))
    if name == LOGITS:
        return made("activations", most, rows, LOGITS, "head", first=before or "")
    kind = _EMBEDDINGS.get(module.rpartition(".")[2])
    if kind:
        return made("activations", most, rows, module, kind)
    if before is None or before.rpartition(".")[2] in _EMBEDDINGS:
        return made("activations", most, rows, module, "embedding_sum")
    return made("activations", most, rows, module, f"between_{_computed_before(module)}", first=before)


def _module_before(names: Sequence[str]) -> Optional[str]:
    outputs = [name[len(OUTPUT):] for name in names if name.startswith(OUTPUT)]
    return outputs[-1] if outputs else None


def _inside(module: str) -> str:
    last = module.rpartition(".")[2]
    if last in _EMBEDDINGS:
        return "inside_embedding"
    return "inside_norm" if last.startswith("ln_") or last.endswith("norm") else "inside_linear"


def _computed_before(module: str) -> str:
    return next((what for end, what in _BETWEEN.items() if f".{module}".endswith(f".{end}")), "modules")


def check_loss(here: Record, there: Record, most: float, dropout: bool) -> Check:
    """The loss of the first example, and that of the first step, which no update has changed yet; labels counted."""
    first, second = here.steps[0], there.steps[0]
    rows = [("first example", relative_number(here.loss_of_first_example, there.loss_of_first_example))]
    if not dropout:
        rows.append(("step 1", relative_number(first.loss, second.loss)))
    labels = [(str(a.step), a.labels, b.labels) for a, b in zip(here.steps, there.steps) if a.labels != b.labels]
    if labels:
        step, ours, theirs = labels[0]
        rows.append((f"labels of step {step}", relative_number(ours, theirs)))
        reason = "more_labels" if theirs > ours else "fewer_labels"
        if theirs > _NEARLY_ALL * there.steps[int(step) - 1].tokens:
            reason = "all_labels"
        return made("loss", most, rows, step, reason, here=f"{ours:,}", there=f"{theirs:,}")
    if not rows[0][1] <= most:
        return made("loss", most, rows, "", "loss_of_example", here=f"{here.loss_of_first_example:.7g}",
                    there=f"{there.loss_of_first_example:.7g}")
    if len(rows) > 1 and not rows[1][1] <= most:
        return made("loss", most, rows, "1", "loss_of_step", here=f"{first.loss:.7g}", there=f"{second.loss:.7g}")
    return made("loss", most, rows)
