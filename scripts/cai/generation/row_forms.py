"""What a row of a prompt source says: its prompt, by the keys that the field uses; and what stays unread."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cai.core.errors import UserError
from cai.core.schema import TASK_TYPES

KEYS = ("instruction", "prompt", "question")  # a row's text, in this order of preference
CHATS = ("messages", "conversations", "conversation")  # or the first human turn of one of these
BEFORE, BEHIND = ("system", "system_prompt"), ("input", "context")  # texts around it
OFFERED = ("choices", "options")  # answers to choose from
RULE = "\n\n---\n\n"  # between HarmBench's context and the behaviour, as HarmBench joins them

LINE = r"(?:\r\n?|\n)[ \t]*"
TURN = rf"Human:(.*?)(?={LINE}(?:Human|Assistant):|\Z)"
FIRST_TURN = re.compile(rf"\s*{TURN}", re.DOTALL)
PREFACED = re.compile(rf"(.*?){LINE}{TURN}", re.DOTALL)
HUMAN, SYSTEM = ("human", "user"), ("system", "developer")


@dataclass(frozen=True)
class Said:
    """task: if it is one of ours. source: the row's form and the file's or dataset's name. unread: keys that
    hold something which is not read."""

    text: str
    task: str | None
    source: str
    unread: Sequence[str] = ()


class Row:
    """A row's values by their keys; those that are known are found in any case. Marks what is read. A key
    without a value is one that other rows have: data sets have every key in every row."""

    def __init__(self, row: dict[str, Any], where: str):
        self.where, self._names, self._read = where, {}, set()
        self._given: dict[str, Any] = {}
        for name, value in row.items():
            key = folded if (folded := name.strip().lower()) in KNOWN else name
            if value is None or value == "":
                self._names.setdefault(key, name)
                continue
            if key in self._given:
                both = f"{self._names[key]!r} and {name!r}"
                raise UserError(f"{where}: {both} differ in their case only; rename one of them")
            self._given[key], self._names[key] = value, name

    def form(self) -> RowForm | None:
        """The first form whose keys the row has with a value, or else at all."""
        forms = [(form, keys) for keys in (self._given, self._names) for form in ROW_FORMS]
        return next((form for form, keys in forms if form.keys <= keys.keys()), None)

    def look(self, key: str) -> Any:
        return self._given.get(key)

    def read(self, key: str) -> Any:
        self._read.add(key)
        return self._given.get(key)

    def text(self, key: str) -> str:
        """What is no text is not read: nobody knows what it means."""
        return self.read(key).strip() if isinstance(self.look(key), str) else ""

    def names(self) -> list[str]:
        return list(self._names.values())

    def unread(self) -> list[str]:
        return [self._names[key] for key in self._given if key not in self._read]


def read_row(row: dict[str, Any], where: str, kind: str, name: str) -> Said:
    """Reads a row by the first form that it fits. kind, name: of the file or dataset. Raises UserError,
    beginning with `where`, if there is no such form, or if the prompt is no text."""
    given = Row(row, where)
    form = given.form()
    if form is None:
        raise UserError(
            f"{where}: has none of the keys {', '.join((*KEYS, *CHATS))} "
            f"(it has {', '.join(given.names())[:200] or 'no key'}); rename the one that holds the prompt"
        )
    text = form.text(given)
    if text is None:
        text = ""
    if not isinstance(text, str):
        raise UserError(f"{where}: the prompt is of type {type(text).__name__}, and must be a text")
    task = given.look("task")
    task = given.read("task") if isinstance(task, str) and task in TASK_TYPES else None
    return Said(text, task, f"{form.name or kind}:{name}", given.unread())


def fits(names: Iterable[str]) -> bool:
    """Whether a row with these keys has a form."""
    return Row(dict.fromkeys(names), "").form() is not None


# ---- transcripts ----


def first_turn(transcript: str) -> str | None:
    """What the human says first in a transcript of HH-RLHF; None if it begins otherwise."""
    match = FIRST_TURN.match(transcript)
    return match[1].strip() if match else None


def _opening(value: Any) -> tuple[str, Any]:
    """(what the system says, what a human says first) of a text, a transcript or a list of messages; a text
    is what a human says, and a value of another type is given back."""
    if isinstance(value, list) and value and all(map(_role, value)):
        turns = [(_role(m), m.get("content") or m.get("value") or "") for m in value]
        system, human = (next((v for role, v in turns if role in of), "") for of in (SYSTEM, HUMAN))
        return system if isinstance(system, str) else "", human
    if not isinstance(value, str):
        return "", value
    if (turn := first_turn(value)) is not None:
        return "", turn
    if value.rstrip().endswith("Assistant:") and (match := PREFACED.match(value)):
        return match[1], match[2]
    return "", "" if value.lstrip().startswith("Assistant:") else value


def _role(message: Any) -> str:
    """Who speaks, in lower case: OpenAI's `role`, ShareGPT's `from`; "" for what is no message."""
    role = (message.get("role") or message.get("from")) if isinstance(message, dict) else None
    return role.lower() if isinstance(role, str) else ""


# ---- forms of rows: a new one is an entry here ----


@dataclass(frozen=True)
class RowForm:
    """name: of the form, as a row's source has it ("": that of the file). keys: those that tell it, all of
    them, in lower case. text: the prompt; "" for a row without one."""

    name: str
    keys: frozenset[str]
    text: Callable[[Row], Any]


def _by(key: str) -> Callable[[Row], Any]:
    """The prompt under a key, with what stands beside it."""

    def text(row: Row) -> Any:
        value = row.read(key)
        if key in CHATS and not isinstance(value, (list, type(None))):
            raise UserError(
                f"{row.where}: {key!r} is of type {type(value).__name__}, and must be a list of turns"
            )
        system, asked = _opening(value)
        if not isinstance(asked, str) or not asked.strip():
            return asked
        parts = [*map(row.text, BEFORE), system, asked, *map(row.text, BEHIND), _instance(row), _offered(row)]
        return "\n\n".join(part.strip() for part in parts if part.strip())

    return text


def _instance(row: Row) -> str:
    """The input of a task of Self-Instruct: of its first instance. More of them count as unread."""
    match row.look("instances"):
        case [{"input": str(text)}, *more]:
            if not more:
                row.read("instances")
            return text
    return ""


def _offered(row: Row) -> str:
    """Answers to choose from, a line each: a list, {"A": ...}, or ARC's {"text": [...], "label": [...]}."""
    for key in OFFERED:
        match row.look(key):
            case {"text": list(texts), "label": list(labels)}:
                pass
            case dict(by_label):
                labels = [label for label, text in by_label.items() if text is not None]
                texts = [by_label[label] for label in labels]
            case list(texts):
                labels = string.ascii_uppercase
            case str():
                return row.text(key)
            case _:
                continue
        if len(texts) <= len(labels) and all(isinstance(t, (str, int, float)) for t in texts):
            row.read(key)
            return "\n".join(f"{label}. {text}" for label, text in zip(labels, texts, strict=False))
    return ""


def _with_context(row: Row) -> Any:
    context, behavior = row.read("contextstring"), row.read("behavior")
    texts = [context, behavior] if context else [behavior]
    no_text = [text for text in texts if not isinstance(text, str)]
    return no_text[0] if no_text else RULE.join(texts)


def _of_transcript(row: Row) -> Any:
    text = row.look("chosen")
    if isinstance(text, str) and first_turn(text) is None:
        raise UserError(f'{row.where}: `chosen` does not begin with "Human:", as transcripts of HH-RLHF do')
    return _by("chosen")(row)


ROW_FORMS = (
    RowForm(
        "ailuminate", frozenset({"prompt_text", "prompt_hash", "hazard"}), lambda row: row.read("prompt_text")
    ),
    RowForm("harmbench", frozenset({"behavior", "behaviorid"}), _with_context),
    *(RowForm("", frozenset({key}), _by(key)) for key in (*KEYS, *CHATS)),
    RowForm("hh-rlhf", frozenset({"chosen", "rejected"}), _of_transcript),
)
KNOWN = frozenset({"task", "instances", "contextstring", *BEFORE, *BEHIND, *OFFERED}).union(
    *(form.keys for form in ROW_FORMS)
)
