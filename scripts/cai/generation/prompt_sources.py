"""Instructions from a prompt file or a dataset, in the forms in which they are published."""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cai.core.errors import UserError
from cai.core.schema import TASK_TYPES, content_id
from cai.core.text import is_broken
from cai.generation.dedup import REASON, EvaluationPrompts
from cai.generation.filters import MARKED_LINE
from cai.prompts.markers import CHAT_TOKENS, END_OF_TEXT

KEYS = ("instruction", "prompt", "question")  # a row's text, in this order of preference
MAX_CHARACTERS = 6000  # some 1,500 tokens: beside exemplars, answer and critique more would not fit 4,096
MAX_LINE = 1 << 20  # bytes
MAX_BYTES = 1 << 30  # of a whole file, unpacked: a compressed one may be small and have no end
CONTEXT = "\n\n---\n\n"  # between HarmBench's context and the behaviour, as HarmBench joins them
FIRST_TURN = re.compile(r"\s*Human:(.*?)(?=\r?\n\r?\n(?:Assistant|Human):|\Z)", re.DOTALL)
FORMS = ".jsonl, .csv or .txt, each also with .gz"
HUB = re.compile(r"([\w.-]+(?:/[\w.-]+)?)(?:/([\w.-]+))?:([\w.+%:\[\]-]+)")


@dataclass(frozen=True)
class Instruction:
    """A row of instructions.jsonl. source: its form and the file's or dataset's name."""

    id: str
    instruction: str
    task: str
    source: str

    def row(self) -> dict[str, str]:
        return asdict(self)


class Loaded(list[Instruction]):
    """The instructions, and beside them how many texts each reason left out."""

    def __init__(self) -> None:
        super().__init__()
        self.left_out: dict[str, int] = {}


def check(source: str) -> None:
    """Raises UserError for what is no source, and for a file whose first row does not fit: before a model is
    loaded."""
    texts = _texts(source)
    if Path(source).is_file():
        next(texts, None)


def load(source: str, limit: int | None = None, barred: Iterable[str] = ()) -> Loaded:
    """The first `limit` usable instructions of a source.

    source: a file (.jsonl with instruction, prompt or question, or with HH-RLHF's chosen and rejected; .csv
    with one of these columns, or AILuminate's or HarmBench's; .txt with a prompt a line; each also as .gz);
    or a dataset with its split, organisation/name:split, organisation/name/configuration:split or
    directory:split, read by the `datasets` library. barred: evaluation prompts, which no instruction may
    equal or be near to. Reading stops once the limit is reached, so what is left out is counted up to there.
    Raises UserError with the file and the row for anything that does not fit.
    """
    if limit is not None and limit < 1:
        raise UserError(f"a limit of {limit} prompts: must be at least 1")
    loaded, seen, evaluation = Loaded(), set(), EvaluationPrompts(barred)
    for text, task, name in _texts(source):
        text = text.strip()
        reason = against(text)
        if reason is None and (identity := content_id(text)) in seen:
            reason = "duplicate"
        if reason is None and evaluation.near(text) is not None:
            reason = REASON
        if reason:
            loaded.left_out[reason] = loaded.left_out.get(reason, 0) + 1
            continue
        seen.add(identity)
        loaded.append(Instruction(identity, text, task if task in TASK_TYPES else "unknown", name))
        if len(loaded) == limit:
            break
    if not loaded:
        reasons = ", ".join(f"{k} {v}" for k, v in loaded.left_out.items())
        raise UserError(f"{source} holds no usable prompt ({reasons or 'it is empty'}): give another source")
    return loaded


def against(text: str) -> str | None:
    """Why a given text cannot be used as an instruction; None if it can."""
    if is_broken(text):
        return "not_utf8"
    if not re.search(r"\w", text):
        return "empty"
    if any(token in text for token in (*CHAT_TOKENS, END_OF_TEXT)):
        return "chat_token"
    if MARKED_LINE.search(text):
        return "marker"
    return "too_long" if len(text) > MAX_CHARACTERS else None


def first_turn(transcript: str) -> str | None:
    """What the human says first in a transcript of HH-RLHF; None if it begins otherwise."""
    match = FIRST_TURN.match(transcript)
    return match[1].strip() if match else None


# ---- where texts come from: each yields (text, task, source) ----


def _texts(source: str) -> Iterator[tuple[str, str | None, str]]:
    path = Path(source)
    if path.is_file():
        form = path.name.removesuffix(".gz").rsplit(".", 1)[-1].lower()
        readers = {"jsonl": _jsonl, "csv": _csv, "txt": _lines}
        if form not in readers:
            raise UserError(f"{source}: the name must end in {FORMS}, so that its form is known")
        return readers[form](path)
    match = HUB.fullmatch(source)
    directory, _, split = source.rpartition(":")
    if directory and Path(directory).is_dir():
        return _dataset(directory, None, split)
    if match and not source.startswith((".", "/")):
        return _dataset(match[1], match[2], match[3])
    if source and path.is_dir():
        raise UserError(
            f"{source} is a directory: write the split of the dataset behind it, as in {source}:train"
        )
    raise UserError(
        f"{source!r} is neither a file ({FORMS}) nor a dataset with its split (organisation/name:split): "
        "check the name"
    )


def _jsonl(path: Path) -> Iterator[tuple[str, str | None, str]]:
    for number, line in _numbered(path):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line, object_pairs_hook=partial(_object, where))
        except (ValueError, RecursionError):
            raise UserError(f"{where}: not JSON; each line must be one object") from None
        if not isinstance(row, dict):
            raise UserError(f"{where}: not a JSON object; each line must be one")
        yield _of_row(row, where, "jsonl", path.name)


def _object(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _no_name_twice([key for key, _ in pairs], where)
    return dict(pairs)


def _no_name_twice(names: Sequence[str], where: str) -> None:
    """The last of two values would be read, and the first be lost."""
    twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if twice is not None:
        raise UserError(f"{where}: {twice!r} is there twice; rename or remove one of them")


def _csv(path: Path) -> Iterator[tuple[str, str | None, str]]:
    csv.field_size_limit(MAX_LINE)
    reader = csv.DictReader((line for _, line in _numbered(path)), strict=True)
    number = 1
    try:
        _no_name_twice(reader.fieldnames or [], f"{path}, the header")
        for number, row in enumerate(reader, 2):
            where = f"{path}, row {number} (it ends in line {reader.line_num})"
            if None in row or None in row.values():
                raise UserError(
                    f"{where}: has {'more' if None in row else 'fewer'} fields "
                    f"than the header's {len(reader.fieldnames)}; "
                    "quote texts that hold commas or line breaks"
                )
            yield _of_row(row, where, "csv", path.name)
    except csv.Error as error:
        raise UserError(f"{path}, row {number + 1}: not CSV ({error}); check its quotes") from None


def _lines(path: Path) -> Iterator[tuple[str, str | None, str]]:
    return ((line, None, f"txt:{path.name}") for _, line in _numbered(path) if line.strip())


def _of_row(row: dict[str, Any], where: str, form: str, name: str) -> tuple[str, str | None, str]:
    """A row's text, its task if it names one, and its source, by the keys that it has."""
    of = next((of for of in ROW_FORMS if of.keys <= row.keys()), None)
    if of is None:
        raise UserError(
            f"{where}: has none of the keys {', '.join(KEYS)} (it has {', '.join(map(str, row))[:200]}); "
            "rename the one that holds the prompt"
        )
    text = of.text(row, where)
    if not isinstance(text, str):
        raise UserError(f"{where}: the prompt is of type {type(text).__name__}, and must be a text")
    task = row.get("task")
    return text, task if isinstance(task, str) else None, f"{of.name or form}:{name}"


# ---- forms of rows: a new one is an entry here ----


@dataclass(frozen=True)
class RowForm:
    """name: of the form, as a row's source has it ("": that of the file). keys: those that tell it, all of
    them. text: (row, where it stands) -> the prompt."""

    name: str
    keys: frozenset[str]
    text: Callable[[dict[str, Any], str], Any]


def _with_context(row: dict[str, Any], where: str) -> Any:
    context, behavior = row.get("ContextString"), row["Behavior"]
    texts = [context, behavior] if context else [behavior]
    no_text = [text for text in texts if not isinstance(text, str)]
    return no_text[0] if no_text else CONTEXT.join(texts)


def _first_turn_of(row: dict[str, Any], where: str) -> Any:
    text = row["chosen"]
    if isinstance(text, str) and (text := first_turn(text)) is None:
        raise UserError(f'{where}: `chosen` does not begin with "Human:", as transcripts of HH-RLHF do')
    return text


ROW_FORMS = (
    RowForm(
        "ailuminate", frozenset({"prompt_text", "prompt_hash", "hazard"}), lambda row, _: row["prompt_text"]
    ),
    RowForm("harmbench", frozenset({"Behavior", "BehaviorID"}), _with_context),
    *(RowForm("", frozenset({key}), lambda row, _, key=key: row[key]) for key in KEYS),
    RowForm("hh-rlhf", frozenset({"chosen", "rejected"}), _first_turn_of),
)


def _numbered(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file, packed or not, with their numbers, up to the limits of size."""
    total = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as f:
            for number, line in enumerate(iter(lambda: f.readline(MAX_LINE + 1), b""), 1):
                total += len(line)
                if len(line) > MAX_LINE:
                    raise UserError(
                        f"{path}, line {number}: longer than {MAX_LINE} bytes; split or remove it"
                    )
                if total > MAX_BYTES:
                    raise UserError(f"{path}: more than {MAX_BYTES} bytes unpacked; split the file")
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError:
                    raise UserError(f"{path}, line {number}: not UTF-8; convert the file (iconv)") from None
                yield number, text
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a whole gzip file ({error}); fetch it again") from None


def _dataset(name: str, configuration: str | None, split: str) -> Iterator[tuple[str, str | None, str]]:
    """Rows of a dataset of the hub, of a directory with data files, or of one that `datasets` saved."""
    import datasets

    where = f"{name}{'/' + configuration if configuration else ''}:{split}"
    label = f"{Path(name).name}:{split}" if Path(name).is_dir() else where  # never a whole path
    try:
        if any((Path(name) / f).is_file() for f in ("state.json", "dataset_dict.json")):
            rows = datasets.load_from_disk(name)
        else:
            rows = datasets.load_dataset(name, configuration, split=split)
    except (OSError, ValueError, LookupError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise UserError(
            f"{where} cannot be loaded ({first}): check the name, the split and the network (for gated ones: "
            "hf auth login), or download the file and give its path"
        ) from None
    if isinstance(rows, datasets.DatasetDict):
        if split not in rows:
            raise UserError(f"{where}: there is no such split; there are {', '.join(rows)}")
        rows = rows[split]
    for number, row in enumerate(rows):
        row = {key: value for key, value in row.items() if value is not None}  # a column that other rows have
        yield _of_row(row, f"{where}, row {number}", "datasets", label)
