"""A passage whose log-probabilities tell whose weights they are: a server's against those that the same model
had here (logs/probe.json, left by every local run)."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from cai.core.files import directories, from_json, locked, write_json
from cai.core.prompt_files import load_neutral
from cai.core.schema import content_id
from cai.models.engine import Engine, logprobs_all
from cai.models.registry import ModelSpec

# The mean of the tokens' distances that another implementation of the same weights may come to (assumed
# beyond float32): in float32, in other arithmetic, between two precisions of the weights.
FLOAT32, SAME_BITS, OTHER_BITS = 0.01, 0.15, 0.5


def passage(spec: ModelSpec) -> tuple[str, str]:
    """(prompt, continuation): a neutral passage of the model's own world, from its middle on."""
    text = load_neutral(Path(spec.neutral))[0]
    middle = text.index(" ", len(text) // 2)
    return text[:middle], text[middle:]


def probe(engine: Engine) -> list[float]:
    prompt, continuation = passage(engine.spec)
    return list(logprobs_all(engine, [prompt], [continuation])[0].tokens)


def remember(engine: Engine) -> None:
    """Leaves a local engine's values for later runs on servers, where it can: no run needs them to go on."""
    values, path = probe(engine), _path()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.parent):  # other runs leave theirs
            known = _known()
            known.setdefault(_model(engine.spec), {})[f"{engine.bits} {engine.revision}"] = values
            write_json(path, known)


def expected(
    spec: ModelSpec, revision: str | None, bits: int, tokens: int
) -> tuple[list[float], bool] | None:
    """(values, whether of these very weights and bits) of this model; None if it has never run here with a
    tokenizer of so many tokens for the passage."""
    known, key = _known().get(_model(spec), {}), f"{bits} {revision}"
    known = {k: values for k, values in known.items() if len(values) == tokens}
    if key in known:
        return known[key], True
    return (known[min(known)], False) if known else None


def tolerance(precision: str, same_bits: bool) -> float:
    return OTHER_BITS if not same_bits else FLOAT32 if precision == "float32" else SAME_BITS


def distance(found: Sequence[float], wanted: Sequence[float]) -> float:
    """The mean of the tokens' distances, in nats."""
    return sum(abs(a - b) for a, b in zip(found, wanted, strict=True)) / len(wanted)


def _model(spec: ModelSpec) -> str:
    return f"{spec.name} {content_id(''.join(passage(spec)))}"


def _path() -> Path:
    return directories("probe")[2] / "probe.json"


def _known() -> dict[str, dict[str, list[float]]]:
    """model and passage -> bits and revision -> values. What cannot be read is measured anew: it is a
    convenience, not a record."""
    try:
        found = from_json(_path().read_text(encoding="utf-8"))
        return {m: {k: [float(x) for x in v] for k, v in of.items()} for m, of in found.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, OverflowError):
        return {}
