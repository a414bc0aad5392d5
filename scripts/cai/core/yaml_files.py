"""YAML files that people write: read strictly, so that no text is cut, lost or changed in silence."""

from __future__ import annotations

import re
from pathlib import Path

from cai.core.errors import UserError
from cai.core.text import is_broken

COMMENT = re.compile(" +#")
MERGE, TEXT = "tag:yaml.org,2002:merge", "tag:yaml.org,2002:str"


def read_yaml(path: Path, what: str, such_as: str) -> object:
    """What a YAML file holds. what, such_as: the kind of file, and an example, for the sentence.

    Raises UserError, with file and line, for one that cannot be read, and for what PyYAML takes in silence: a
    key that stands twice (the first would be lost), a text that a comment cuts short, half of a surrogate
    pair. Merge keys are refused, too: with them a key could stand in an entry twice, and rightly so."""
    import yaml

    def refuse(node: yaml.Node, fault: str, way_out: str) -> None:
        raise UserError(f"{path}: {fault} (line {node.start_mark.line + 1}); {way_out}")

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node, deep=False):
            keys = []
            for key_node, _ in node.value:
                if key_node.tag == MERGE:
                    refuse(key_node, "a merge key (<<) is not read", "write this entry's keys out")
                key = self.construct_object(key_node, deep=True)
                if key in keys:
                    refuse(key_node, f"the key {key!r} stands twice in one entry", "remove one of them")
                keys.append(key)
            return super().construct_mapping(node, deep)

        def construct_scalar(self, node):
            value = super().construct_scalar(node)
            if is_broken(value):
                fault = "half of a surrogate pair (as \\ud83d) is no character"
                refuse(node, fault, "write the character itself")
            if node.tag == TEXT and not node.style and COMMENT.match(text, node.end_mark.index):
                fault = f"the text is cut short at the # behind {value[-40:]!r}, where YAML begins a comment"
                refuse(node, fault, "put quotes around the text, or the comment on a line of its own")
            return value

    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"there is no {what} at {path}; give the path of a YAML file such as {such_as}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read the {what} {path}: {error}; check the path and that it is a UTF-8 text file"
        ) from None
    try:
        return yaml.load(text, Loader)  # a SafeLoader
    except RecursionError:
        raise UserError(
            f"{path} is not valid YAML: it is nested too deeply; write it with fewer levels"
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        where = " ".join(str(error).split())
        raise UserError(
            f"{path} is not valid YAML: {where}; mend that place (a text with ': ' in it needs quotes)"
        ) from None
