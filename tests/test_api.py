"""The public names, and the program of docs/library.md."""

import pathlib
import re

import jax
import numpy as np
import pytest

import rmn_jax as rmn
from rmn_jax import api

PAGE = (pathlib.Path(__file__).parent.parent / "docs" / "library.md").read_text()


def test_the_page_lists_the_public_names_and_no_other():
    assert set(api.__all__) == set(rmn._PUBLIC) <= set(dir(rmn))
    table = PAGE[PAGE.index("| name |") : PAGE.index("This program")]
    assert set(re.findall(r"`(\w+)\(", table)) == set(api.__all__)
    for name in api.__all__:
        assert getattr(rmn, name) is getattr(api, name)
        assert getattr(rmn, name).__doc__
    with pytest.raises(AttributeError):
        rmn.no_such_name  # noqa: B018


def test_the_program_of_the_page_trains_through_the_four_phases(capsys):
    names: dict = {}
    exec(compile(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1], "library.md", "exec"), names)
    assert names["after"] < names["before"] < np.log(10)
    assert set(np.unique(names["features"]["assignment1"])) <= {0, 1}
    # A converted network computes what the plain one does, whatever its memories.
    plain, images = names["plain"], names["images"][:20]
    variables = rmn.init(plain, seed=1, image_size=8)
    model, cloned = rmn.convert(plain, variables)
    cloned = rmn.initialise_memories(model, cloned, images)
    routed = jax.jit(model.apply)(cloned, images)
    np.testing.assert_allclose(routed.logits, jax.jit(plain.apply)(variables, images).logits, atol=1e-4)
    assert len(np.unique(routed.assignment[0])) == 2


def test_only_the_routed_stages_are_cloned():
    plain = rmn.RMN(rmn.create_backbone("resnet8", 10, 8, width=4), num_units=3, routed=False, routed_stages=(3,))
    variables = rmn.init(plain, seed=1, image_size=8)
    model, cloned = rmn.convert(plain, variables)
    assert cloned["memory"].keys() == {"memory3"}
    images = np.random.default_rng(0).normal(size=(20, 8, 8, 3)).astype(np.float32)
    cloned = rmn.initialise_memories(model, cloned, images)
    routed = jax.jit(model.apply)(cloned, images)
    np.testing.assert_allclose(routed.logits, jax.jit(plain.apply)(variables, images).logits, atol=1e-4)
    assert len(np.unique(routed.assignment[2])) == 3


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="already"):
        rmn.register_backbone("resnet8", lambda num_classes, image_size: None)
