import pytest

from rmn_jax.data.skipping import SkippedExamples
from rmn_jax.errors import UserError


def test_the_first_is_fatal_by_default_and_the_error_says_how_to_skip():
    with pytest.raises(UserError, match=r"a\.jpg: it is empty.*config\.data\.skip_corrupt=n"):
        SkippedExamples(0).add("a.jpg", "it is empty")


def test_distinct_examples_count_up_to_the_limit():
    skipped = SkippedExamples(2)
    for example in ("a", "b", "a", "b"):
        skipped.add(example, "it is empty")
    assert skipped.count == 2
    with pytest.raises(UserError, match="c: it is grey. It is unusable example number 3; .* allows 2"):
        skipped.add("c", "it is grey")


def test_a_negative_limit_is_refused():
    with pytest.raises(UserError, match="skip_corrupt is -1"):
        SkippedExamples(-1)
