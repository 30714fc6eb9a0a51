#!/usr/bin/env python3
"""Writes conversations in which an assistant keeps a calendar and answers in a fixed format: data to try chat training.

    python examples/calendar_chat.py train.jsonl --count 300
    python examples/calendar_chat.py dev.jsonl --count 100 --seed 1
    python examples/calendar_chat.py --check runs/calendar/scores/predictions.json

Each line has OpenAI's `messages`: a system turn, and --fewest to --most requests that create, move or cancel one
entry, each answered by one line of JSON. No two start alike, also not those of an even and an odd seed.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator

FIELDS = ("what", "day", "time", "place", "status")
SYSTEM = f"You keep a calendar. Answer each request with the entry as one line of JSON: {', '.join(FIELDS)}."
WHAT = ("lunch", "dinner", "a call", "a review", "a haircut", "a lesson", "a rehearsal", "a check-up", "coffee",
        "a workshop", "an interview", "a walk")
WHO = ("Ana", "Boris", "Chen Wei", "Dora", "Emeka", "Farid", "Grace", "Hiro", "Ines", "Jonas", "Kavya", "Li Na")
PLACES = ("the library", "room 4", "the old bridge", "Cafe Luna", "the office", "the station", "building C", "the park")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
CREATE = ("Please plan {what} on {day} at {time}, at {place}.", "{what} on {day}, {time}, {place}.",
          "Can you put down {what} for {day} at {time}? We meet at {place}.",
          "I need {what} at {place} on {day}, {time}.")
MOVE = ("Move it to {day}.", "{day} suits me better.", "Sorry, could it be on {day}?")
LATER = ("Make it {minutes} minutes later.", "I will be {minutes} minutes late, please shift it.")
PLACE = ("Let us meet at {place} instead.", "Change the place to {place}.")
CANCEL = ("Cancel it, please.", "Something came up: drop it.")


def conversations(count: int, fewest: int, most: int, seed: int) -> Iterator[list[dict[str, str]]]:
    """`count` conversations of `fewest` to `most` requests each, as lists of messages."""
    draw, seen = random.Random(f"calendar {seed}"), set()
    while len(seen) < count:
        messages = list(_conversation(draw, draw.randint(fewest, most)))
        first = messages[1]["content"]
        # Even and odd seeds share the first requests out by their parity.
        if first not in seen and sum(first.encode()) % 2 == seed % 2:
            seen.add(first)
            yield messages


def _conversation(draw: random.Random, requests: int) -> Iterator[dict[str, str]]:
    minutes = draw.randrange(8 * 60, 20 * 60, 15)
    entry = {"what": f"{draw.choice(WHAT)} with {draw.choice(WHO)}", "day": draw.choice(DAYS), "time": _clock(minutes),
             "place": draw.choice(PLACES), "status": "planned"}
    yield {"role": "system", "content": SYSTEM}
    request = draw.choice(CREATE).format(**entry)
    for number in range(requests):
        yield {"role": "user", "content": request[0].upper() + request[1:]}
        yield {"role": "assistant", "content": json.dumps(entry)}
        change = draw.choice(("day", "time", "place")) if number < requests - 2 else draw.choice(("day", "status"))
        if change == "day":
            entry["day"] = draw.choice([day for day in DAYS if day != entry["day"]])
            request = draw.choice(MOVE).format(**entry)
        elif change == "time":
            late = draw.choice((15, 30, 45))
            minutes += late
            entry["time"], request = _clock(minutes), draw.choice(LATER).format(minutes=late)
        elif change == "place":
            entry["place"] = draw.choice([place for place in PLACES if place != entry["place"]])
            request = draw.choice(PLACE).format(**entry)
        else:
            entry["status"], request = "cancelled", draw.choice(CANCEL)


def _clock(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"


def check(path: str) -> str:
    """How many answers in a predictions.json are one line of JSON with just the five fields, and nothing after it."""
    with open(path, encoding="utf-8") as file:
        answers = json.load(file).values()
    return f"{sum(map(is_entry, answers))} of {len(answers)} answers are entries in the format, and end there"


def is_entry(answer: str) -> bool:
    try:
        entry = json.loads(answer)
    except ValueError:
        return False
    return "\n" not in answer and isinstance(entry, dict) and list(entry) == list(FIELDS) and all(
        isinstance(value, str) for value in entry.values())


def main() -> None:
    parser = argparse.ArgumentParser(description="Write conversations about a calendar as JSON Lines with messages.")
    parser.add_argument("output", nargs="?")
    parser.add_argument("--check", metavar="PREDICTIONS", help="count the answers that keep to the format instead")
    parser.add_argument("--count", type=int, default=300, help="number of conversations (default: 300)")
    parser.add_argument("--fewest", type=int, default=1, help="fewest requests per conversation (default: 1)")
    parser.add_argument("--most", type=int, default=5, help="most requests per conversation (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="another one gives other conversations (default: 0)")
    options = parser.parse_args()
    if options.check:
        print(check(options.check))
        return
    if not options.output:
        parser.error("give a file to write, or --check")
    with open(options.output, "w", encoding="utf-8") as file:
        for messages in conversations(options.count, options.fewest, options.most, options.seed):
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
