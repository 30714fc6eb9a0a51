"""The JSON format of SQuAD: articles, paragraphs, questions (Rajpurkar et al. 2016, arXiv:1606.05250; v2, with
questions that have no answer: Rajpurkar et al. 2018, arXiv:1806.03822). DRCD and CMRC 2018 use it too; CMRC 2018 also
comes as a list of its own."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from jittor_lora.data.records import number_in, records
from jittor_lora.data.subset import choose
from jittor_lora.data.text_file import MISSING, Offenders, is_text, parse_json, read_text
from jittor_lora.errors import UserError

PURPOSES = ("training", "evaluation", "prompts")
_VERSION_2 = re.compile(r"v?2(\.|$)")


@dataclass(frozen=True)
class Answer:
    """A reference answer; `start` is its offset in the context in characters (code points), -1 if unknown."""

    text: str
    start: int


NO_ANSWER = Answer("", -1)


@dataclass(frozen=True)
class Question:
    """A question; without reference answers, it has no answer in its context, or they were not read."""

    id: str
    text: str
    answers: tuple[Answer, ...]

    def training_answer(self) -> Answer:
        """The most frequent reference text that is in the context, the first of equals; an empty text if there is no
        answer."""
        return self.distinct_answers()[0][0]

    def distinct_answers(self) -> list[tuple[Answer, float]]:
        """The distinct reference texts that are in the context, each with its share of them, most frequent first.

        The official training file has one answer per question; the development file has several, from different
        annotators. An empty text, if there is no answer.
        """
        if not self.answers:
            return [(NO_ANSWER, 1.0)]
        counts = Counter(answer.text for answer in self.answers)
        distinct: dict[str, Answer] = {}
        for answer in [answer for answer in self.answers if answer.start >= 0] or self.answers:
            distinct.setdefault(answer.text, answer)
        total = sum(counts[text] for text in distinct)
        return sorted(((answer, counts[text] / total) for text, answer in distinct.items()), key=lambda pair: -pair[1])


@dataclass(frozen=True)
class Paragraph:
    title: str
    context: str
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class SquadData:
    """The paragraphs of one file that have questions.

    Attributes:
        path: the file.
        paragraphs: in the order of the file.
        moved_answers: the number of answers not found at their `answer_start` but elsewhere; the nearest occurrence
            is used.
        no_answers: whether questions may have no answer: some are marked so, or the file's version is 2.
    """

    path: str
    paragraphs: tuple[Paragraph, ...]
    moved_answers: int = 0
    no_answers: bool = False

    def __len__(self) -> int:
        """The number of questions."""
        return sum(len(paragraph.questions) for paragraph in self.paragraphs)

    def subset(self, count: int, seed: int) -> SquadData:
        """Exactly `count` questions (all if there are fewer), in the order of the file; see `subset.choose`."""
        sizes: dict[str, list[int]] = {}
        members: dict[str, list[int]] = {}
        for i, paragraph in enumerate(self.paragraphs):
            sizes.setdefault(paragraph.title, []).append(len(paragraph.questions))
            members.setdefault(paragraph.title, []).append(i)
        places = list(members.values())
        kept = {places[a][p]: n for (a, p), n in choose(list(sizes.values()), count, seed).items()}
        chosen = [(self.paragraphs[i], kept[i]) for i in sorted(kept)]
        return replace(self, paragraphs=tuple(Paragraph(p.title, p.context, p.questions[:n]) for p, n in chosen))

    def only(self, ids: Container[str]) -> SquadData:
        """The questions with these ids."""
        kept = (Paragraph(p.title, p.context, tuple(q for q in p.questions if q.id in ids)) for p in self.paragraphs)
        return replace(self, paragraphs=tuple(p for p in kept if p.questions))

    def places(self) -> dict[str, tuple[str, ...]]:
        """Question id -> its article and paragraph, within which scores are correlated."""
        return {q.id: (p.title, p.context) for p in self.paragraphs for q in p.questions}

    def references(self) -> dict[str, list[str]]:
        """Question id -> the texts of all its reference answers, none if it has no answer."""
        return {q.id: [a.text for a in q.answers] for p in self.paragraphs for q in p.questions}


def read_squad(path: str | os.PathLike, purpose: str = "training") -> SquadData:
    """Read a SQuAD file, v1.1 or v2.

    Args:
        path: the JSON file.
        purpose: "training" (each answer must occur in its context), "evaluation" (answers are only for comparison) or
            "prompts" (questions need no answers).

    Raises:
        UserError: the file is malformed, with all places listed, or has no questions.
    """
    return parse_squad(read_text(path), path, purpose)


def parse_squad(text: str, path: str | os.PathLike, purpose: str = "training") -> SquadData:
    """`read_squad` for a text that is already read."""
    if purpose not in PURPOSES:
        raise ValueError(f"purpose is one of {PURPOSES}, not {purpose!r}")
    try:
        whole = parse_json(text)
    except ValueError as error:
        raise UserError(f"{path}: {error}. Expected SQuAD JSON; copy or download the file again.") from error
    reader = _Reader(path, purpose)
    return reader.read(tuple(p for p in reader.paragraphs(whole) if p.questions))


def is_flat(first: Any) -> bool:
    """Whether the first record of a file is a SQuAD question with its context, or a context of CMRC 2018's list."""
    if not isinstance(first, dict) or "prompt" in first:
        return False
    return {"context", "question"} <= first.keys() or {"context_text", "qas"} <= first.keys()


def parse_flat(text: str, path: str | os.PathLike, purpose: str = "training") -> SquadData:
    """SQuAD as records, of one of two kinds.

    As the library datasets writes it, one per question: `context`, `question`, `answers` with the lists `text` and
    `answer_start`, both empty if there is no answer, optionally `id` and `title`. Questions about one context form a
    paragraph. Or CMRC 2018's list, one per context: `context_text`, optionally `title`, and `qas` with `query_text`,
    `query_id` and `answers`, a list of texts.

    Raises:
        UserError: as `read_squad`.
    """
    reader = _Reader(path, purpose)
    paragraphs = tuple(reader.flat(records(text, reader.offenders)))
    return reader.read(tuple(p for p in paragraphs if p.questions))


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


class _Reader:
    """Checks while reading; its results are complete only if there were no offenders."""

    def __init__(self, path: str | os.PathLike, purpose: str):
        self.offenders = Offenders(path)
        self.purpose = purpose
        self.moved = 0
        self.no_answers = False
        self.first_seen: dict[str, str] = {}

    def read(self, paragraphs: tuple[Paragraph, ...]) -> SquadData:
        """The data, if there were no offenders.

        Raises:
            UserError: there were offenders, or no questions.
        """
        self.offenders.check("Fix these places, or use the file as published.")
        if not paragraphs:
            raise UserError(f"{self.offenders.path}: no questions in it.")
        return SquadData(str(self.offenders.path), paragraphs, self.moved, self.no_answers)

    def paragraphs(self, whole: Any) -> Iterator[Paragraph]:
        if not isinstance(whole, dict):
            self.offenders.add("the whole file", 'an object with the key "data"', whole)
            return
        self.no_answers = _VERSION_2.match(str(whole.get("version", ""))) is not None
        for where, article in self._objects(whole, "data", ""):
            title = article.get("title", "")
            if not is_text(title):
                self.offenders.add(f"{where}.title", "a text", title)
                title = ""
            for place, paragraph in self._objects(article, "paragraphs", where):
                context = self._text(paragraph, "context", place)
                questions = tuple(self._questions(paragraph, context, place))
                yield Paragraph(title, context, questions)

    def flat(self, rows: Iterable[tuple[str, Any]]) -> Iterator[Paragraph]:
        """The paragraphs of records with one question each, or with one context each."""
        found: dict[tuple[str, str], list[Question]] = {}
        for place, row in rows:
            if not isinstance(row, dict):
                self.offenders.add(place, "an object with context, question and answers", row)
                continue
            title = row.get("title", "")
            if "context_text" in row:
                context = self._text(row, "context_text", place)
                yield Paragraph(title if is_text(title) else "", context, tuple(self._queries(row, context, place)))
                continue
            context = self._text(row, "context", place)
            entry = {"id": number_in(place), **row, "answers": self._listed(row, place)}
            if type(entry["id"]) is int:
                entry["id"] = str(entry["id"])
            if entry["answers"] == []:  # datasets drops is_impossible
                entry.setdefault("is_impossible", True)
            key = title if is_text(title) else "", context
            found.setdefault(key, []).append(self._question(entry, context, place))
        for (title, context), questions in found.items():
            yield Paragraph(title, context, tuple(questions))

    def _listed(self, row: dict, place: str) -> Any:
        """A list of answers, which datasets stores as one list of texts and one of offsets."""
        answers = row.get("answers", MISSING)
        if not isinstance(answers, dict):
            return answers
        texts, starts = answers.get("text", MISSING), answers.get("answer_start", MISSING)
        if isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts):
            return [{"text": text, "answer_start": start} for text, start in zip(texts, starts)]
        if self.purpose != "prompts":
            self.offenders.add(f"{place}.answers", "lists text and answer_start of the same length", answers)
        return MISSING

    def _questions(self, paragraph: dict, context: str, where: str) -> Iterator[Question]:
        for place, entry in self._objects(paragraph, "qas", where):
            yield self._question(entry, context, place)

    def _question(self, entry: dict, context: str, place: str) -> Question:
        name, text = self._new_id(entry, "id", place), self._text(entry, "question", place)
        impossible = entry.get("is_impossible", False)
        if type(impossible) is not bool:
            self.offenders.add(f"{place}.is_impossible", "true or false", impossible)
            impossible = False
        self.no_answers |= impossible
        return Question(name, text, tuple(self._answers(entry, context, place, impossible)))

    def _new_id(self, entry: dict, key: str, place: str) -> str:
        name = self._text(entry, key, place)
        if name in self.first_seen and name:
            self.offenders.add(f"{place}.{key}", f"an id not used before (it is at {self.first_seen[name]})", name)
        self.first_seen.setdefault(name, place)
        return name

    def _queries(self, row: dict, context: str, where: str) -> Iterator[Question]:
        """The questions of a context in CMRC 2018's list, whose answers are texts without a place."""
        for place, entry in self._objects(row, "qas", where):
            name, text = self._new_id(entry, "query_id", place), self._text(entry, "query_text", place)
            answers = [] if self.purpose == "prompts" else entry.get("answers", MISSING)
            if not isinstance(answers, list) or not answers and self.purpose != "prompts":
                self.offenders.add(f"{place}.answers", "a list of at least one text", answers)
                continue
            found = []
            for number, answer in enumerate(answers):
                if not is_text(answer) or not answer:
                    self.offenders.add(f"{place}.answers[{number}]", "a text that is not empty", answer)
                else:
                    found.append(Answer(answer, self._found(answer, context, 0, f"{place}.answers[{number}]")))
            yield Question(name, text, tuple(found))

    def _answers(self, entry: dict, context: str, where: str, impossible: bool) -> Iterator[Answer]:
        if self.purpose == "prompts":
            return
        if impossible:
            answers = entry.get("answers", [])
            if not isinstance(answers, list) or any(not isinstance(a, dict) or a.get("text") for a in answers):
                self.offenders.add(f"{where}.answers", "an empty list, as is_impossible is true", answers)
            return
        if entry.get("answers") == []:
            self.offenders.add(f"{where}.answers", "at least one answer, or is_impossible: true", "an empty list")
        # CMRC 2018 has answers that are not in the context, marked -1, beside others that are.
        placed = self.purpose == "training" and _any_placed(entry.get("answers"))
        for place, answer in self._objects(entry, "answers", where):
            text, start = self._text(answer, "text", place), answer.get("answer_start", MISSING)
            if self.purpose == "training" and (type(start) is not int or start < 0) and not (start == -1 and placed):
                self.offenders.add(f"{place}.answer_start", "a whole number, 0 or more", start)
                continue
            found = self._found(text, context, start, f"{place}.text") if type(start) is int and start >= 0 else -1
            self.moved += found not in (start, -1)
            yield Answer(text, found)

    def _found(self, text: str, context: str, start: int, place: str) -> int:
        """Where an answer stands in its context, nearest to `start`; -1 if nowhere, which is wrong in training."""
        found = _nearest(context, text, start) if text and context else -1
        if found < 0 and text and context and self.purpose == "training":
            form = " (they differ only in Unicode normal form: write both in NFC)" if _composed(text) in \
                _composed(context) else ""
            self.offenders.add(place, f"a text that occurs in the paragraph's context{form}", text)
        return found

    def _objects(self, holder: dict, key: str, where: str) -> Iterator[tuple[str, dict]]:
        """The objects in the list `holder[key]`, with their paths in the file."""
        path = f"{where}.{key}" if where else key
        values = holder.get(key, MISSING)
        if not isinstance(values, list):
            self.offenders.add(path, "a list", values)
            return
        for i, value in enumerate(values):
            if isinstance(value, dict):
                yield f"{path}[{i}]", value
            else:
                self.offenders.add(f"{path}[{i}]", "an object", value)

    def _text(self, holder: dict, key: str, where: str) -> str:
        value = holder.get(key, MISSING)
        if is_text(value) and value:
            return value
        expected = "text that is valid UTF-8" if isinstance(value, str) and value else "a text that is not empty"
        self.offenders.add(f"{where}.{key}", expected, value)
        return ""


def _any_placed(answers: Any) -> bool:
    return isinstance(answers, list) and any(
        isinstance(answer, dict) and type(answer.get("answer_start")) is int and answer["answer_start"] >= 0
        for answer in answers)


def _nearest(context: str, text: str, start: int) -> int:
    """The occurrence of `text` in `context` nearest to `start`, the earlier of two at one distance; -1 if none."""
    if context.startswith(text, start):
        return start
    before = context.rfind(text, 0, min(start, len(context)) + len(text))
    after = context.find(text, start)
    if before < 0 or after < 0:
        return max(before, after)
    return before if start - before <= after - start else after
