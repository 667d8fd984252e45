"""Search spaces: their grammar, their distributions, and the values that are checked."""

from __future__ import annotations

import re
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from dino_exp.config.hydra_loader import loader
from dino_exp.config.search_space import probes, space_of
from dino_exp.errors import UserError


@pytest.mark.parametrize(
    ("text", "distribution", "shown"),
    [
        ("a.b=interval(0.02,0.2)", FloatDistribution(0.02, 0.2), ["0.02", "0.2"]),
        ("a.b=tag(log, interval(1e-5,1e-2))", FloatDistribution(1e-5, 1e-2, log=True), ["1e-05", "0.01"]),
        ("a.b=int(interval(1,8))", IntDistribution(1, 8), ["1", "8"]),
        ("a.b=tag(int, log, interval(1.5,8))", IntDistribution(2, 8, log=True), ["2", "8"]),
        ("a.b=choice(0,0.9,0.99)", CategoricalDistribution(("0", "0.9", "0.99")), ["0", "0.9", "0.99"]),
        ("a.b=shuffle(x,1,y,x)", CategoricalDistribution(("x", "1", "y")), ["x", "1", "y"]),
        ("a.b=range(10,1,-3)", IntDistribution(4, 10, step=3), ["4", "10"]),
        ("a.b=range(0.1,0.5,0.1)", FloatDistribution(0.1, 0.4, step=0.1), ["0.1", "0.4"]),
    ],
)
def test_grammar(text: str, distribution: Any, shown: list[str]) -> None:
    space = space_of(loader(None).parse(text))
    assert space.distribution() == distribution
    assert space.probes() == shown


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a=interval(2,1)", "the first end of an interval must be below the second."),
        ("a=interval(0,inf)", "an interval needs two finite ends."),
        ("a=tag(log,interval(0,1))", "tag log needs an interval above 0."),
        ("a=tag(lgo,interval(1,2))", "tag lgo is unknown; intervals take log, int and momentum."),
        ("a=tag(log,choice(1,2))", "tag log is unknown; intervals take log, int and momentum."),
        ("a=range(3,1)", "an empty range."),
        ("a=range(0,1,0)", "the step of a range cannot be 0."),
    ],
)
def test_empty_spaces(text: str, error: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"{text}: {error}")):
        space_of(loader(None).parse(text))


def test_rounding_does_not_leave_the_space() -> None:
    space = space_of(loader(None).parse("a=interval(0.02123456789,0.123456789)"))
    typed = {0.1234567889: "0.123456789", 0.0212345679: "0.0212346", 0.05: "0.05"}
    assert [space.text(value) for value in typed] == list(typed.values())


def test_probes_vary_one_key_at_a_time() -> None:
    spaces = [space_of(loader(None).parse(text)) for text in ("a=interval(1,2)", "b=x,y,z")]
    assert probes(["c=1"], spaces) == [
        ["c=1", "a=1.0", "b=x"],
        ["c=1", "a=2.0", "b=x"],
        ["c=1", "a=1.0", "b=y"],
        ["c=1", "a=1.0", "b=z"],
    ]
