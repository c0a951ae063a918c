"""Which tokens each protocol scores, and from how much context."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dongwu_jax.evaluate.windows import batches, chunked_spans, sliding_spans, truncated_spans


def scored(spans, length):
    """(predicted token, tokens of context) of all that counts, in order."""
    found = []
    for start, stop, first in zip(spans.start, spans.stop, spans.scored, strict=True):
        assert 0 < stop - start <= length
        assert start < first <= stop
        found += [(label, label - start) for label in range(first, stop + 1)]
    return found


@given(st.integers(2, 60), st.integers(1, 20))
def test_chunked_predicts_every_token_but_the_first_once(num_tokens, length):
    found = scored(chunked_spans(num_tokens, length), length)
    assert [label for label, _ in found] == list(range(1, num_tokens))
    assert [context for _, context in found] == [i % length + 1 for i in range(num_tokens - 1)]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=5), st.integers(1, 12), st.data())
def test_sliding_predicts_each_document_by_itself_from_enough_context(sizes, length, data):
    stride = data.draw(st.integers(1, length))
    bounds = np.cumsum([0, *sizes])
    found = scored(sliding_spans(bounds, length, stride), length)
    documents = list(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))
    expected = [(i, i - first) for first, end in documents for i in range(first + 1, end)]
    assert [label for label, _ in found] == [label for label, _ in expected]
    for (_, context), (_, possible) in zip(found, expected, strict=True):
        assert min(possible, length - stride + 1) <= context <= possible


def test_sliding_by_hand():
    spans = sliding_spans(np.array([0, 10]), 4, 2)
    assert spans.start.tolist() == [0, 2, 4, 5]
    assert spans.stop.tolist() == [4, 6, 8, 9]
    assert spans.scored.tolist() == [1, 5, 7, 9]


def test_truncate_takes_what_is_long_enough_for_every_length():
    bounds = np.array([0, 9, 18, 26])
    spans = truncated_spans(bounds, 4, 8)
    assert (spans.start.tolist(), spans.stop.tolist()) == ([0, 9], [4, 13])
    assert spans.scored.tolist() == [1, 10]


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_batches_hold_every_scored_token_once(rows):
    stream = np.arange(100, 121, dtype=np.int32)
    spans = sliding_spans(np.array([0, 10, 21]), 4, 3)
    found = []
    for batch in batches(stream, stream == 110, spans, rows, 4):
        assert batch.tokens.shape == batch.labels.shape == batch.counted.shape == (rows, 4)
        there = batch.counted == 1
        assert (batch.tokens + 1 == batch.labels)[there].all()
        found += batch.labels[there].tolist()
    assert found == [i for i in range(101, 121) if i != 110]
