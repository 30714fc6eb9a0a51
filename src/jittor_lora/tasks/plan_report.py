"""A plan on the screen, and for other programs."""

from __future__ import annotations

import dataclasses
from typing import Any

from jittor_lora.settings.text import flag
from jittor_lora.system.pace import interval
from jittor_lora.tasks.plan import Change, Plan


def table(plan: Plan) -> str:
    """One line per question that people ask before a run, and the answer."""
    by, sizes = plan.seconds_by, plan.memory_by
    precision = plan.precision
    if precision != plan.precision_wanted:
        precision += f", as this machine does not compute in {plan.precision_wanted}"
    steps = f"steps {interval(by['steps'])} at {plan.tokens_per_second:,.0f} tokens/s ({plan.steps_measured} measured)"
    parts = [steps, f"start {interval(by['start'])}"]
    parts += [f"{plan.validations} validations {interval(by['validation'])}"] if plan.validations else []
    parts += [f"saving {interval(by['saving'])}"]
    how = "" if plan.memory_measured else ", estimated"
    lines = [
        ("data", f"{plan.examples:,} examples, the longest {plan.longest_example:,} tokens"),
        ("steps", f"{plan.steps:,} with {plan.tokens:,} tokens, of which {plan.scored_tokens:,} are scored"),
        ("precision", precision),
        ("threads", f"{plan.threads}"),
        ("time", f"{interval(plan.seconds)}: {', '.join(parts)}"),
        ("memory", f"{_size(plan.memory)} of {_size(plan.memory_available)}{how}: program and base "
         f"{_size(sizes['base'])}, trained {_size(sizes['trained'])}, activations of {plan.longest_stream:,} tokens "
         f"{_size(sizes['activations'])}"),
        ("disk", f"{_size(plan.disk)} of {_size(plan.disk_free)} free"),
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join([*(f"{name:<{width}}  {text}" for name, text in lines), *_verdict(plan)])


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain values."""
    return dataclasses.asdict(plan)


def _verdict(plan: Plan) -> list[str]:
    if plan.fits:
        return ["It fits. Nothing was trained or written."]
    lines = []
    if plan.disk > plan.disk_free:
        lines.append(f"It does not fit on the disk: free space, or name an {flag('output')} on another one.")
    if plan.changes:
        lines += ["It does not fit into memory. It would with", *map(_change, plan.changes)]
    elif plan.disk <= plan.disk_free:
        lines.append(f"It does not fit into memory: take a smaller base, or cut examples with {flag('max_tokens')}.")
    return lines


def _change(change: Change) -> str:
    flags = " ".join(flag(name) if value is True else f"{flag(name)} {value}"
                     for name, value in change.settings.items())
    slower = f", {change.time_factor:.1f} times the time" if change.time_factor > 1.05 else ""
    return f"  {flags}: about {_size(change.memory)}{slower}"


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
