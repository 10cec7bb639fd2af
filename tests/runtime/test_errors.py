"""Errors in words: what a library raises is named by a sentence, whatever its message."""

import sys
from types import SimpleNamespace

import pyarrow as pa
import pytest

from kd3.runtime.errors import KD3Error, in_words
from kd3.runtime.ray_tasks import ray_cluster
from kd3.sources.containers import unusable


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (KeyError("type"), "'type' is missing"),
        (KeyError(7), "7 is missing"),
        (KeyError("no column of that name"), "no column of that name"),
        (KeyError(), "KeyError"),
        (EOFError(), "EOFError"),
        (ValueError("cut short"), "cut short"),
        (KeyError("x" * 5000), "'" + "x" * 199 + "... is missing"),
    ],
)
def test_an_error_says_what_it_is_about(problem, words):
    assert in_words(problem) == words
    assert unusable(problem).detail == words[:300]


def test_sentences_of_pyarrow_are_not_quoted():
    with pytest.raises(KeyError) as found:
        pa.schema([("a", pa.int8())]).field("key")
    assert in_words(found.value) == "Column key does not exist in schema"


@pytest.mark.parametrize("problem", [TimeoutError(), ConnectionError("no head node\nlong advice")])
def test_a_cluster_that_does_not_answer_is_a_sentence_also_where_it_gives_no_reason(problem, monkeypatch):
    def refuse(**_):
        raise problem

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False, init=refuse))
    with pytest.raises(KD3Error, match=r"does not answer: (TimeoutError|no head node)$"), ray_cluster():
        pass
