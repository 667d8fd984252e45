"""Each verdict from the metrics that mean it."""

import math

import pytest

from dino_exp.verdict import WORDS, Judge, Verdict

HEALTHY = {
    "loss": 2.0,
    "grad_norm": 1.0,
    "teacher/mutual_information_share": 0.3,
    "teacher/entropy_share": 0.5,
    "kl_share": 0.1,
}


def judge(out_dim: int = 64, crops: int = 64) -> Judge:
    return Judge(out_dim=out_dim, crops=crops, warmup_steps=100)


def after(*seen: dict[str, float], judge: Judge | None = None, step: int = 1000) -> Verdict:
    judge = judge or globals()["judge"]()
    verdicts = [judge.observe(step + 50 * place, HEALTHY | values) for place, values in enumerate(seen)]
    return verdicts[-1]


DEAD = {"teacher/mutual_information_share": 0.0}


@pytest.mark.parametrize(
    ("values", "word", "advice"),
    [
        ({}, "healthy", "entropy is 0.500"),
        ({"teacher/mutual_information_share": 0.01}, "slow", "hardly"),
        (DEAD | {"teacher/entropy_share": 0.999}, "collapsed-uniform", "lower loss.teacher_temp"),
        (DEAD | {"teacher/entropy_share": 0.01}, "collapsed-one-hot", "loss.center_momentum"),
        (DEAD | {"teacher/entropy_share": 0.84}, "collapsed-constant", "loss.centering"),
        ({"loss": math.nan}, "diverged", "optimizer.lr"),
        ({"grad_norm": math.inf}, "diverged", "grad_norm"),
        ({"grad_norm": None}, "healthy", "entropy is 0.500"),  # fp16 skipped the step
    ],
)
def test_the_word_and_its_evidence(values: dict[str, float], word: str, advice: str):
    verdict = after(values, values, values)
    assert verdict.word == word
    assert word in WORDS
    assert advice in verdict.evidence


def test_nothing_is_called_before_the_warmup_is_over_but_divergence():
    assert after(DEAD, DEAD, step=10).word == "warming-up"
    early = judge()
    assert early.observe(1, HEALTHY | DEAD).word == "warming-up"
    assert early.observe(2, HEALTHY | {"loss": math.nan}).word == "diverged"


def test_one_odd_batch_decides_nothing_and_a_collapse_can_be_recovered_from():
    assert after(DEAD, DEAD, {}).word != "collapsed-constant"
    recovering = judge()
    assert after(DEAD, DEAD, DEAD, judge=recovering).collapsed
    assert after({}, {}, {}, judge=recovering, step=2000).word == "healthy"


def test_few_crops_limit_what_can_be_known():
    share = {"teacher/mutual_information_share": 0.018}
    assert after(share, share, share).word == "slow"
    assert after(share, share, share, judge=judge(out_dim=65536, crops=16)).word == "healthy"


def test_state_goes_through_a_checkpoint():
    first = judge()
    after(DEAD, DEAD, judge=first)
    second = judge()
    second.load_state_dict(first.state_dict())
    assert second.verdict == first.verdict
    assert second.observe(1200, HEALTHY | DEAD).collapsed
