"""Configurations as TOML files that explain themselves."""

from __future__ import annotations

import difflib
import json
import textwrap
from collections.abc import Collection
from typing import Any

from pydantic import BaseModel, SecretStr

_COMMENT_WIDTH = 98


def as_toml(config: BaseModel) -> str:
    """Return a configuration as a TOML file, each option under what it does.

    What is not set, and secrets, are named without a value.
    """
    return "\n".join(_lines(config, ""))


def no_such(what: str, name: str, known: Collection[str], place: str = "there") -> str:
    """Return the sentence that a name is not known, with what may have been meant.

    Args:
        what: the name should be of: an option, a setting.
        name: what was given.
        known: the names there are.
        place: where they are.
    """
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"{name}: no such {what}; did you mean {near[0]}?"
    has = "are" if place == "there" else "has"
    return f"{name}: no such {what}; {place} {has} {', '.join(known)}"


def _lines(config: BaseModel, path: str) -> list[str]:
    lines, sections = [], []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        description = " ".join((field.description or "").replace("``", "`").split())
        comment = [f"# {line}" for line in textwrap.wrap(description, _COMMENT_WIDTH)]
        if isinstance(value, BaseModel):
            sections += [*comment, f"[{path}{name}]", *_lines(value, f"{path}{name}.")]
        else:
            is_shown = value is not None and not isinstance(value, SecretStr)
            option = f"{name} = {_literal(value)}" if is_shown else f"# {name} ="
            lines += [*comment, option, ""]
    return lines + sections


def _literal(value: Any) -> str:
    """Return a value as TOML: JSON's numbers, strings and arrays, but for two escapes.

    TOML knows no surrogate pairs, and wants DEL escaped, which JSON leaves as it is.
    """
    return json.dumps(value, default=str, ensure_ascii=False).replace("\x7f", "\\u007f")
