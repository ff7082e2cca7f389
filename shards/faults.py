"""What a validator says becomes what a person reads: `train.steps: must be at least 1, got 0`.

One form for every kind of fault: where, what would be accepted, what was given as YAML would write it. A validator
stops where values make no sense; `rest` goes on without them, so that one fault does not hide the next.
"""

import copy
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

_LONGEST = 60
_MISSING = "required, but not given"
_MORE = "must have more values"
_OWN = ("value_error", "assertion_error")  # of validators of ours
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


Place = tuple[int | str, ...]
"""Keys and places in lists, from the top of a document to a value."""


def in_words(kind: Any, faults: Sequence[ErrorDetails]) -> list[tuple[Place, str]]:
    """Where each fault of a document of type `kind` lies, and a line that says it. Which form of a value with several
    was read, a tag in <>, is no part of where.
    """
    for fault in faults:
        fault["loc"] = tuple(part for part in fault["loc"] if not str(part).startswith("<"))
    return list(dict.fromkeys((_place(kind, fault), _line(kind, fault)) for fault in faults if not _follows(fault)))


def _place(kind: Any, fault: ErrorDetails) -> Place:
    """A message of a validator of ours that begins with a key of its section is about that key."""
    location = [part for part in fault["loc"] if part != "[key]"]
    if fault["type"] in _OWN:
        key, colon, _ = _message(fault).partition(":")
        if colon and key.partition(".")[0] in _keys_at(kind, location):
            location += key.split(".")
    return tuple(location)


def not_text(where: str, given: Any) -> str:
    """A name or text that YAML took for something else."""
    return f"{where}: must be text, got {shown(given)}; {_quotes(given)}"


def shown(value: Any) -> str:
    """A value as YAML would write it, cut short if it is long."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _line(kind: Any, fault: ErrorDetails) -> str:
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
            return f"{parent}: {_MORE}, got {shown(given)}"
        case "missing":
            return f"{where}: {_MISSING}"
        case "string_type":
            return not_text(where, given) if isinstance(given, (bool, int, float)) else _got(where, "text", given)
        case "string_pattern_mismatch":
            pattern = context["pattern"]
            return f"{where}: must be made of {_NAMES.get(pattern, f'what {pattern} matches')}, got {shown(given)}"
        case found if found in _OWN:
            place = _place(kind, fault)
            message = _message(fault).partition(":")[2].lstrip() if len(place) > len(location) else _message(fault)
            return f"{'.'.join(map(str, place)) or 'the file'}: {message}"
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


def _message(fault: ErrorDetails) -> str:
    return fault["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")


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


def switches(given: Any, read: Any, where: str = "") -> list[str]:
    """A fault for each `true` and `false` that was taken for the number 1 or 0, as choices of numbers do."""
    if isinstance(given, dict) and isinstance(read, dict):
        inside = f"{where}." if where else ""
        return [fault for name in given for fault in switches(given[name], read.get(name), inside + name)]
    if isinstance(given, list) and isinstance(read, list) and len(given) == len(read):
        return [fault for i in range(len(given)) for fault in switches(given[i], read[i], f"{where}.{i}")]
    if isinstance(given, bool) and not isinstance(read, bool) and isinstance(read, (int, float)):
        return [f"{where}: must be a number, got {shown(given)}"]
    return []


def rest(kind: Any, content: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """What is left of a document of type `kind` without the values in it that are faulty, None if too little is; and
    the faults that show only then. Those that may be there only because a value was taken out are not told.
    """
    content = copy.deepcopy(dict(content))
    taken: list[Place] = []
    hidden: list[str] = []
    reader: TypeAdapter[Any] = TypeAdapter(kind)
    while True:
        try:
            found = reader.validate_json(json.dumps(content), strict=True)
        except ValidationError as error:
            faults = in_words(kind, error.errors())
        else:
            return found, hidden + switches(content, reader.dump_python(found, mode="json"))
        hidden += [line for place, line in faults if taken and not _may_follow(place, line, taken)]
        gone = _take_out(content, faults[-1][0])
        if not gone:
            return None, hidden
        taken.append(gone)


def _take_out(content: dict[str, Any], place: Place) -> Place:
    """Removes the value at a place, or what should hold it; says which. Empty if that would be the whole content."""
    gone: Place = ()
    section: Any = content
    holder: Any = None
    for part in place:
        there: Any = dict(enumerate(section)) if isinstance(section, list) else section
        if not isinstance(there, dict) or part not in there:
            break
        gone, holder, section = (*gone, part), section, there[part]
    if gone:
        del holder[gone[-1]]
    return gone


def _may_follow(place: Place, line: str, taken: Sequence[Place]) -> bool:
    """Whether a fault is about what held a value that was taken out, names one, or misses what that one might fill."""
    words = re.findall(r"[\w-]+", line.partition(": ")[2])
    missing = line.endswith(_MISSING) or f": {_MORE}, got" in line
    return any(
        place == gone[: len(place)] or gone[-1] in words or (missing and place[:-1] == gone[:-1]) for gone in taken
    )
