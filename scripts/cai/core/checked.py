"""What the values of a written file must be, as types of a dataclass's fields, and every mistake in words.

It needs pydantic: modules that a script's --help imports do not import this one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    StrictBool,
    StrictFloat,
    StrictInt,
    TypeAdapter,
    ValidationError,
)
from pydantic.dataclasses import dataclass

from cai.core.text import kind

# A frozen dataclass whose values are checked, also where code makes one. Each field's description says what
# would be right; a ValueError of a validator is in words of its own.
checked = partial(dataclass, frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))


YesNo = Annotated[StrictBool, Field(description="true or false")]


Name = Annotated[str, Field(min_length=1)]


Text = Annotated[str, Field(pattern=r"\S", description="a text (in quotes, if it holds ': ')")]


def number(low: float, high: float | None = None, *, whole: bool = False, empty: bool = False) -> Any:
    """empty: null will do, too. A whole number stays one, also where others are allowed."""
    kind = StrictInt if whole else StrictInt | StrictFloat
    span = f"of at least {low:g}" if high is None else f"from {low:g} to {high:g}"
    right = f"a {'whole ' * whole}number {span}" + " (or null)" * empty
    return Annotated[kind | None if empty else kind, Field(ge=low, le=high, description=right)]


def one_of(*choices: Any) -> Any:
    def same_type(value: Any) -> Any:  # 4.0 == 4 and True == 1 in Python
        if type(value) not in map(type, choices):
            raise AssertionError
        return value

    said = ", ".join("null" if c is None else str(c) for c in choices)
    return Annotated[Literal[choices], BeforeValidator(same_type), Field(description=said)]


def distinct(item: Any = Name, *also: Any, right: str = "such as [first, second]") -> Any:
    """A list of different names. item: the type of each. also: validators that run before the others."""

    def different(found: tuple) -> tuple:
        if len(set(found)) < len(found):
            raise AssertionError
        return found

    as_tuple = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
    said = Field(description=f"a list of different names, {right}")
    return Annotated[tuple[item, ...], Strict(), as_tuple, *also, AfterValidator(different), said]


def read(make: type, values: Mapping[str, Any], context: Any = None) -> tuple[Any, list[str]]:
    """(a dataclass of these values, or None; what is wrong with them, each "key: what would be right").
    context: for the validators."""
    values = _named(values)
    try:
        return TypeAdapter(make).validate_python(values, context=context), []
    except ValidationError as error:
        found = [_mistake(make, values, e) for e in error.errors(include_url=False)]
        return None, list(dict.fromkeys(found))  # int | float says it twice


def _named(values: Any) -> Any:
    """With texts as keys: YAML reads `off` and `3` as something else."""
    return {str(k): _named(v) for k, v in values.items()} if isinstance(values, Mapping) else values


def _mistake(make: type, values: Any, error: Mapping[str, Any]) -> str:
    at, value, keys = make, values, []
    for key in error["loc"]:
        if not is_dataclass(at) or not isinstance(value, Mapping):
            break
        known = at.__pydantic_fields__
        keys.append(key)
        value, field = value.get(key), known.get(key)
        at = field and field.annotation
    where, kind_of = ": ".join(keys), error["type"]
    if kind_of == "unexpected_keyword_argument":
        before = "".join(f"{key}: " for key in keys[:-1])
        return f"{before}unknown key {keys[-1]!r}{meant(keys[-1], known)}; the keys are {', '.join(known)}"
    if kind_of == "missing":
        return f"{where}: is missing; it must be {field.description}"
    if kind_of == "dataclass_type":
        return f"{where}: is {kind(value)}; it must be a mapping of {', '.join(at.__pydantic_fields__)}"
    if kind_of == "value_error":
        return f"{where}: {error['ctx']['error']}"
    right = field.description.replace("number", "finite number" if value == float("inf") else "number")
    return f"{where}: {value!r} must be {right}"


def meant(word: Any, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(word), list(known), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""
