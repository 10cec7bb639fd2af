"""Records that pools, teachers and students share: class names, preparation, a network's input. Free of torch."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from kd3.runtime.errors import KD3Error

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


Fit = Literal["crop", "squash"]
Resampling = Literal["bicubic"]
Colours = Literal["rgb"]
FITS: tuple[str, ...] = get_args(Fit)
IN_WORDS = {"crop": "the shorter side to size, then the centre", "squash": "the whole picture, distorted"}


@dataclass(frozen=True, slots=True)
class Preparation:
    """Treatment of a picture by `kd3.pool.pictures.read_picture`: for pools, tests, predictions and exports."""

    size: int  # side of the square, in pixels
    fit: Fit = "crop"
    resampling: Resampling = "bicubic"  # with antialiasing
    colours: Colours = "rgb"  # order of the channels
    channels: Literal[3] = 3

    def __str__(self) -> str:
        return f"{self.size} x {self.size} by {self.fit} ({IN_WORDS[self.fit]})"

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, values: Mapping[str, Any] | None, *, size: int) -> Preparation:
        """Read the result of `to_dict`; None (written by earlier versions) is the centre crop.

        Raises:
            ValueError: it needs something that this kd3 cannot do, or another size.
        """
        found = {"size": size, **(values or {})}
        allowed = {
            "size": (size,),
            "fit": FITS,
            "resampling": get_args(Resampling),
            "colours": get_args(Colours),
            "channels": (3,),
        }
        for name, value in found.items():
            if name not in allowed:
                raise ValueError(f"preparation.{name} is not known; known: {', '.join(allowed)}")
            if value not in allowed[name]:
                known = ", ".join(map(str, allowed[name]))
                raise ValueError(f"preparation.{name} is {value!r}; this kd3 knows {known}")
        return cls(**found)


@dataclass(frozen=True)
class Signature:
    """Normalisation and size of the input, names of the classes, preparation of pictures."""

    mean: Sequence[float]  # per channel of RGB in [0, 1]
    std: Sequence[float]
    input_size: int  # pixels
    classes: Sequence[str]  # in the order of the logits
    fit: Fit = "crop"

    @property
    def preparation(self) -> Preparation:
        """Preparation of a picture for the input."""
        return Preparation(self.input_size, self.fit)
