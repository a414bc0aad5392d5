"""Instructions from a prompt file or a dataset, in the forms in which they are published."""

from __future__ import annotations

import csv
import gzip
import itertools
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from cai.core import jsonl
from cai.core.errors import UserError
from cai.core.prompt_files import load_heldout
from cai.core.schema import content_id, row_seed
from cai.core.text import is_broken
from cai.generation.dedup import REASON, EvaluationPrompts
from cai.generation.filters import MARKED_LINE
from cai.generation.row_forms import Said, fits, read_row
from cai.models.registry import ModelSpec
from cai.prompts.markers import CHAT_TOKENS, END_OF_TEXT

MAX_CHARACTERS = 6000  # some 1,500 tokens: beside exemplars, answer and critique more would not fit 4,096
MAX_LINE = 1 << 20  # bytes
MAX_BYTES = 1 << 30  # of a whole file, unpacked: a compressed one may be small and have no end
FORMS = ".jsonl, .csv, .tsv or .txt, each also with .gz"
DELIMITERS = {"csv": ",;\t|", "tsv": "\t,;|"}  # by which a header may be read, the likeliest first
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
    """The instructions, and beside them what the whole source held: how many could be used, how many texts
    each reason left out, and which keys or columns were not read."""

    def __init__(self, instructions: Iterable[Instruction] = ()) -> None:
        super().__init__(instructions)
        self.usable = 0
        self.left_out: dict[str, int] = {}
        self.unread: list[str] = []


def check(source: str, spec: ModelSpec) -> None:
    """Raises UserError for what is no source, for any row that does not fit, and where every row is one that
    the model is evaluated on: before it is loaded."""
    load(source, barred=[h.instruction for h in load_heldout(Path(spec.heldout))])


def load(source: str, limit: int | None = None, barred: Iterable[str] = (), seed: int = 0) -> Loaded:
    """The usable instructions of a source: all of them as they stand, or a sample of `limit`, by the seed.

    source: a file (.jsonl with keys that row_forms knows, .csv or .tsv with such columns, .txt with a prompt
    a line; each also as .gz); or a dataset with its split, organisation/name:split,
    organisation/name/configuration:split or directory:split, read by the `datasets` library. barred:
    evaluation prompts, which no instruction may equal or be near to. A sample does not depend on the order of
    the rows, and begins with every smaller one of its seed. Raises UserError with the file and the row for
    anything that does not fit.
    """
    if limit is not None and limit < 1:
        raise UserError(f"a limit of {limit} prompts: must be at least 1")
    path = Path(source)
    state = path.stat() if path.is_file() else None
    whole = _read(source, tuple(barred), state and (state.st_mtime_ns, state.st_size))
    loaded = Loaded(whole)
    loaded.usable, loaded.left_out, loaded.unread = whole.usable, dict(whole.left_out), list(whole.unread)
    if limit is not None:
        loaded.sort(key=lambda i: (row_seed(seed, i.id, "source"), i.id))
        del loaded[limit:]
    return loaded


@lru_cache(maxsize=1)
def _read(source: str, barred: tuple[str, ...], state: tuple[int, int] | None) -> Loaded:
    """The whole of a source. It is asked for several times: when it is checked, and whenever a run takes more
    of it. state: of a file, which may be another one the next time."""
    loaded, seen, evaluation = Loaded(), set(), EvaluationPrompts(barred)
    unread: dict[str, None] = {}
    for row in _texts(source):
        text = row.text.strip()
        unread.update(dict.fromkeys(row.unread))
        reason = against(text)
        if reason is None and (identity := content_id(text)) in seen:
            reason = "duplicate"
        if reason is None and evaluation.prompts and evaluation.near(text) is not None:
            reason = REASON
        if reason:
            loaded.left_out[reason] = loaded.left_out.get(reason, 0) + 1
            continue
        seen.add(identity)
        loaded.append(Instruction(identity, text, row.task or "unknown", row.source))
    if not loaded:
        reasons = ", ".join(f"{k} {v}" for k, v in loaded.left_out.items())
        raise UserError(f"{source} holds no usable prompt ({reasons or 'it is empty'}): give another source")
    loaded.usable, loaded.unread = len(loaded), list(unread)
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


# ---- where texts come from ----


def _texts(source: str) -> Iterator[Said]:
    path = Path(source)
    if path.is_file():
        form = path.name.removesuffix(".gz").rsplit(".", 1)[-1].lower()
        readers = {"jsonl": _jsonl, "csv": _csv, "tsv": _csv, "txt": _lines}
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


def _jsonl(path: Path) -> Iterator[Said]:
    for number, line in _numbered(path):
        if line.strip():
            where = f"{path}, line {number}"
            yield read_row(jsonl.parse(line, where), where, "jsonl", path.name)


def _csv(path: Path) -> Iterator[Said]:
    csv.field_size_limit(MAX_LINE)
    lines = (line for _, line in _numbered(path))
    header = next(lines, "")
    delimiters = DELIMITERS["tsv" if path.name.removesuffix(".gz").lower().endswith(".tsv") else "csv"]
    by = next((d for d in delimiters if fits(next(csv.reader([header], delimiter=d), []))), delimiters[0])
    reader = csv.DictReader(itertools.chain([header], lines), delimiter=by, strict=True)
    number = 1
    try:
        jsonl.no_name_twice(reader.fieldnames or [], f"{path}, the header")
        for number, row in enumerate(reader, 2):
            where = f"{path}, row {number} (it ends in line {reader.line_num})"
            if None in row or None in row.values():
                raise UserError(
                    f"{where}: has {'more' if None in row else 'fewer'} fields "
                    f"than the header's {len(reader.fieldnames)}; "
                    "quote texts that hold commas or line breaks"
                )
            yield read_row(row, where, "csv", path.name)
    except csv.Error as error:
        raise UserError(f"{path}, row {number + 1}: not CSV ({error}); check its quotes") from None


def _lines(path: Path) -> Iterator[Said]:
    for number, line in _numbered(path):
        if line.strip():
            yield read_row({"prompt": line}, f"{path}, line {number}", "txt", path.name)


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


def _dataset(name: str, configuration: str | None, split: str) -> Iterator[Said]:
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
        yield read_row(row, f"{where}, row {number}", "datasets", label)
