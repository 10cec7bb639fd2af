"""Match a folder's name or a label to one of a model's classes: by name, by number, or in sorted order.

Numbers in names are read as numbers: `1` to `12`, `class_0` to `class_11`, `zero` to `nine`. The result records the
matching for display: a wrong order would give wrong figures without an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kd3.config.records import HOW_TO_NAME, are_numbers, class_name, some
from kd3.runtime.errors import KD3Error
from kd3.runtime.text import one_line
from kd3.sources.record import Label

SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"}
WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip
SHOWN = 40


@dataclass(frozen=True)
class Matching:
    """The class of each label.

    `labels` is keyed by the data's labels: names or numbers.
    """

    how: str  # in words
    labels: dict[str, int]
    classes: list[str]  # the model's
    note: str = ""  # a possible error in it

    def of(self, label: Label) -> int:
        """Return the class of a label."""
        return self.labels[_key(label)]

    @property
    def is_identity(self) -> bool:
        """Whether each label is its class's own name or number."""
        return all(key in (self.classes[place], str(place)) for key, place in self.labels.items())

    def lines(self) -> list[str]:
        """Describe the matching: in a line if it is the identity, otherwise in a table."""
        first = one_line(f"classes: {self.how}" + (f"; {self.note}" if self.note else ""))
        if self.is_identity:
            return [first]
        pairs = [(one_line(key), place) for key, place in sorted(self.labels.items(), key=lambda pair: pair[1])]
        width = max(len(key) for key, _ in pairs)
        rows = [f"  {key:<{width}}  is {one_line(self.called(place))}" for key, place in pairs[:SHOWN]]
        return [first, *rows, *([f"  ... and {len(pairs) - SHOWN:,} more"] if len(pairs) > SHOWN else [])]

    def called(self, place: int) -> str:
        """Return a class of the model in words."""
        return f"class {place}" + ("" if self.classes[place] == str(place) else f", {self.classes[place]}")

    def names(self) -> list[str]:
        """Return a name for each class: the model's, or the data's if the model has only numbers and the data name
        all.
        """
        if are_numbers(self.classes) and len(self.labels) == len(self.classes):
            return [key for key, _ in sorted(self.labels.items(), key=lambda pair: pair[1])]
        return list(self.classes)

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON."""
        return {"how": self.how, "note": self.note, "identity": self.is_identity, "labels": self.labels}


def match_classes(labels: Iterable[Label], classes: Sequence[str], *, where: str, label_origin: str) -> Matching:
    """Match each label to a class.

    Args:
        labels: all labels of the data.
        classes: the model's, in the order of its logits; "0", "1", ... if they have no names.
        where: the data's source, for messages.
        label_origin: origin of the labels, in words ("class folders").

    Raises:
        KD3Error: they are not the model's classes, or ambiguous.
    """
    found = {_key(label): label for label in labels}
    classes = [class_name(name) for name in classes]
    data = _Data(where, label_origin, found, classes)
    if all(label.name is None for label in found.values()):
        return data.by_number({key: label.number for key, label in found.items() if label.number is not None})
    if all(label.name is not None and label.number is not None for label in found.values()):
        return data.by_both()
    return data.by_name()


class _Data:
    def __init__(self, where: str, label_origin: str, found: dict[str, Label], classes: list[str]) -> None:
        self.where, self.label_origin, self.found, self.classes = where, label_origin, found, classes
        self.place = {name: number for number, name in enumerate(classes)}
        self.has_names = not are_numbers(classes)

    def by_name(self) -> Matching:
        names = sorted(self.found)
        if set(names) <= set(self.place):
            how = "by name" if self.has_names else "by number"
            return self._matched(how, {name: self.place[name] for name in names}, self._doubt(names))
        if set(map(str.lower, names)) <= SPLITS:
            raise KD3Error(
                f"{self.where} is divided into {some(names)}, which are no classes; give one of them, with a folder of "
                f"images for each class or with labels"
            )
        numbers = numbers_of(names)
        counted = self._counted(numbers) if numbers else None
        if counted:
            how, labels = counted
            moved = [name for name in names if self.place.get(name, labels[name]) != labels[name]]
            if moved and self.has_names:
                other = moved[0]
                raise KD3Error(
                    f"{self.where} has {self._what()} that are classes of the model by name, such as {other!r}, and "
                    f"others that are not: {some([name for name in names if name not in self.place])}; the numbers in "
                    f"their names would make {other!r} the class {self.classes[labels[other]]!r}; its classes are "
                    f"{some(self.classes)}"
                )
            return self._matched(f"numbers in their names{how}", labels, self._doubt(names))
        if self.has_names:
            strangers = [name for name in names if name not in self.place]
            raise KD3Error(
                f"{self.where} has {self._what()} that are no classes of the model: {some(strangers)}; its classes are "
                f"{some(self.classes)}"
            )
        if len(names) != len(self.classes):
            raise KD3Error(
                f"{self.where} has {self._what()} of {len(names)} classes ({some(names)}) but the model knows "
                f"{len(self.classes)} classes, by number only; {HOW_TO_NAME}"
            )
        if numbers and sorted(names, key=lambda name: numbers[name]) != names:
            raise KD3Error(
                f"{self.where} has {self._what()} whose order by text is not that by number ({some(names)}), and the "
                f"model knows its classes by number only; {HOW_TO_NAME}"
            )
        return self._matched(
            "in sorted order, as torchvision's ImageFolder numbers them, since the model's classes have no names",
            {name: number for number, name in enumerate(names)},
        )

    def by_number(self, numbers: dict[str, int]) -> Matching:
        counted = self._counted(numbers)
        if counted is None:
            raise KD3Error(
                f"{self.where} has the labels {min(numbers.values())} to {max(numbers.values())}, but the model knows "
                f"{len(self.classes)} classes, counted from 0"
            )
        how, labels = counted
        return self._matched(f"by number{how}", labels)

    def by_both(self) -> Matching:
        numbers = {key: label.number for key, label in self.found.items() if label.number is not None}
        if self.has_names and set(self.found) <= set(self.place):
            return self._matched("by name", {name: self.place[name] for name in self.found})
        fits = all(0 <= number < len(self.classes) for number in numbers.values())
        shared = [name for name in numbers if name in self.place]
        if not self.has_names or (fits and shared and all(self.place[name] == numbers[name] for name in shared)):
            return self.by_number(numbers)
        strangers = [name for name in self.found if name not in self.place]
        raise KD3Error(
            f"{self.where} has labels that are no classes of the model: {some(strangers)}; its classes are "
            f"{some(self.classes)}"
        )

    def _counted(self, numbers: dict[str, int]) -> tuple[str, dict[str, int]] | None:
        """Return the way in which these numbers count the classes, and the class of each; None if they do not."""
        first, last = min(numbers.values()), max(numbers.values())
        if len(set(numbers.values())) < len(numbers) or first < 0:
            return None
        if last < len(self.classes):
            return "", dict(numbers)
        if first >= 1 and last == len(self.classes):
            return ", counted from 1", {key: number - 1 for key, number in numbers.items()}
        return None

    def _doubt(self, names: Sequence[str]) -> str:
        """Return a doubt about numbers that should count from 0: there is no 0."""
        numbers = numbers_of(names) if not self.has_names or not set(names) <= set(self.place) else {}
        if len(numbers) > 1 and min(numbers.values()) == 1 and max(numbers.values()) < len(self.classes):
            return "counted from 0, though there is no 0: if they count from 1, name the model's classes"
        return ""

    def _what(self) -> str:
        return "folders" if "folder" in self.label_origin else "labels"

    def _matched(self, how: str, labels: dict[str, int], note: str = "") -> Matching:
        return Matching(f"{self.label_origin}, {how}", labels, self.classes, note)


def numbers_of(names: Sequence[str]) -> dict[str, int]:
    """Return the number in each name if the names differ only in it (`class_7`, `07`, `seven`); otherwise nothing.

    >>> numbers_of(["class_10", "class_9"]), numbers_of(["Two", "one"]), numbers_of(["mp3", "h264"])
    ({'class_10': 10, 'class_9': 9}, {'Two': 2, 'one': 1}, {})
    """
    if names and all(name.lower() in WORDS for name in names):
        return {name: WORDS.index(name.lower()) for name in names}
    parts = [re.fullmatch(r"(\D*)(\d{1,18})(\D*)", name, re.ASCII) for name in names]
    if not names or None in parts or len({(part[1], part[3]) for part in parts if part}) > 1:
        return {}
    return {name: int(part[2]) for name, part in zip(names, parts, strict=True) if part}


def _key(label: Label) -> str:
    return str(label.number) if label.name is None else class_name(label.name)
