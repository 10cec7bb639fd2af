"""Names of classes: equality and order. Free of torch."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from kd3.errors import KD3Error

SHOWN = 10
HOW_TO_NAME = (
    "list them as 'classes: [...]', in the order of the logits, in the teacher's description; a finished run gets them "
    "by: kd3 classes RUN --names NAMES"
)


def class_name(name: object) -> str:
    """Normalise a name for storage and comparison: text in Unicode's composed form (NFC).

    >>> class_name("cafe\\u0301") == "caf\\u00e9"
    True
    """
    return unicodedata.normalize("NFC", str(name))


def are_numbers(classes: Sequence[str]) -> bool:
    """Return whether classes have only numbers: "0", "1", "2", ..."""
    return all(name == str(number) for number, name in enumerate(classes))


def nameless(classes: Sequence[str]) -> str:
    """Return advice for naming numbered classes, shown on their first use."""
    return f"the classes have only numbers, 0 to {len(classes) - 1}; if they have names, {HOW_TO_NAME}"


def places(wanted: Sequence[str], given: Sequence[str], *, whose: str, other: str) -> list[int]:
    """Return the position in `given` of each class in `wanted`: by name, or by number if one list has no names.

    Args:
        wanted: the classes of `whose` logits.
        given: the classes of the `other` one's.

    Raises:
        KD3Error: these are not the same classes.
    """
    ours, theirs = [class_name(name) for name in wanted], [class_name(name) for name in given]
    if len(ours) != len(theirs):
        raise KD3Error(f"{whose} knows {len(ours)} classes but {other} {len(theirs)}; they do not belong together")
    if ours == theirs or are_numbers(ours) or are_numbers(theirs):
        return list(range(len(ours)))
    place = {name: number for number, name in enumerate(theirs)}
    if set(place) != set(ours):
        strangers = [name for name in ours if name not in place]
        raise KD3Error(
            f"{whose} and {other} name other classes and cannot be compared: {some(strangers)} of the first "
            f"{'is' if len(strangers) == 1 else 'are'} not in the second ({some(theirs)})"
        )
    return [place[name] for name in ours]


def some(names: Sequence[str], most: int = SHOWN) -> str:
    """Return the first names in quotes, for messages."""
    return ", ".join(repr(name) for name in names[:most]) + (", ..." if len(names) > most else "")
