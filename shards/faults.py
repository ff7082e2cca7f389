"""What a validator says becomes what a person reads: `train.steps: must be at least 1, got 0`.

One form for every kind of fault: where, what would be accepted, what was given as YAML would write it.
"""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

_LONGEST = 60
_IN_WORDS = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be a section of keys and values",
    "model_type": "must be a section of keys and values",
    "model_attributes_type": "must be a section of keys and values",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "string_too_short": "must have at least {min_length} character(s)",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "must have at least {min_length} value(s)",
    "too_long": "must have at most {max_length} values",
}
_NAMES = {
    r"^[A-Za-z0-9_-]+$": "letters, digits, _ and -",
    r"^[A-Za-z0-9][A-Za-z0-9_-]*$": "letters, digits, _ and -, a letter or digit first",
}


def in_words(kind: type[BaseModel], faults: Sequence[ErrorDetails]) -> list[str]:
    """A line for each fault of a document of type `kind`."""
    return list(dict.fromkeys(_line(kind, fault) for fault in faults if not _follows(fault)))


def not_text(where: str, given: Any) -> str:
    """A name or text that YAML took for something else."""
    return f"{where}: must be text, got {shown(given)}; {_quotes(given)}"


def shown(value: Any) -> str:
    """A value as YAML would write it, cut short if it is long."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _line(kind: type[BaseModel], fault: ErrorDetails) -> str:
    location, given = list(fault["loc"]), fault["input"]
    is_key = location[-1:] == ["[key]"]
    if is_key:
        location.pop()
    where = ".".join(map(str, location)) or "the file"
    context = {name: f"{v:g}" if isinstance(v, float) else v for name, v in fault.get("ctx", {}).items()}
    match fault["type"]:
        case "extra_forbidden":
            return f"{where}: unknown key; {suggestion(str(location[-1]), _keys_at(kind, location[:-1]))}"
        case "missing" if isinstance(location[-1], int):  # of a list with a fixed number of values
            parent = ".".join(map(str, location[:-1]))
            return f"{parent}: must have more values, got {shown(given)}"
        case "missing":
            return f"{where}: required, but not given"
        case "string_type":
            return not_text(where, given) if isinstance(given, (bool, int, float)) else _got(where, "text", given)
        case "string_pattern_mismatch":
            pattern = context["pattern"]
            return f"{where}: must be made of {_NAMES.get(pattern, f'what {pattern} matches')}, got {shown(given)}"
        case "value_error" | "assertion_error":
            return _own(kind, location, fault["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, "))
        case found if found in _IN_WORDS:
            accepted = _IN_WORDS[found].format(**context)
            hint = ""
            if found in ("literal_error", "enum") and isinstance(given, str):
                close = difflib.get_close_matches(given, re.findall("'(.*?)'", context["expected"]), n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
            return f"{where}{' (its name)' if is_key else ''}: {accepted}, got {shown(given)}{hint}"
        case _:
            message = fault["msg"].replace("Input should", "must")
            return f"{where}: {message[0].lower()}{message[1:]}, got {shown(given)}"


def _got(where: str, accepted: str, given: Any) -> str:
    return f"{where}: must be {accepted}, got {shown(given)}"


def _own(kind: type[BaseModel], location: Sequence[int | str], message: str) -> str:
    """The message of a validator of ours. One that begins with a key of its section goes on with the section's path."""
    where = ".".join(map(str, location))
    first = message.partition(":")[0].partition(".")[0]
    if ":" in message and first in _keys_at(kind, location):
        return f"{where}.{message}" if where else message
    return f"{where or 'the file'}: {message}"


def _quotes(given: Any) -> str:
    if isinstance(given, bool):
        return "YAML reads unquoted yes, no, on, off, true and false so: write the name in quotes, such as 'no'"
    return "YAML reads unquoted digits as a number (007 as 7, 1e3 as 1000): write the name in quotes, such as '007'"


def _follows(fault: ErrorDetails) -> bool:
    """Whether a list is short only because values in it are faulty themselves."""
    least = fault.get("ctx", {}).get("min_length", 0)
    return fault["type"] == "too_short" and len(fault["input"]) >= least


def suggestion(key: str, known: Sequence[str]) -> str:
    """What else an unknown key may have been meant to be."""
    close = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(sorted(known)) or 'nothing'}"


def _keys_at(kind: Any, location: Sequence[int | str]) -> list[str]:
    """The keys that are accepted at a location inside the annotation `kind`; empty where anything goes."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        if not location:
            return [info.alias or name for name, info in kind.model_fields.items()]
        info = kind.model_fields.get(str(location[0]))
        return _keys_at(info.annotation, location[1:]) if info else []
    rest = location[1:] if get_origin(kind) in (dict, list, tuple, Mapping) else location
    return [key for inner in get_args(kind) for key in _keys_at(inner, rest)]
