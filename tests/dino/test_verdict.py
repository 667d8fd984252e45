"""The verdict on series of metrics."""

import math

import pytest

from dino_exp.config.compose import compose
from dino_exp.dino.verdict import WORDS, Judge, Verdict
from dino_exp.training.plan import judge_of

HEALTHY = {
    "loss": 2.0,
    "grad_norm": 1.0,
    "teacher/mutual_information_share": 0.3,
    "student/mutual_information_share": 0.1,
    "teacher/entropy_share": 0.5,
    "kl_share": 0.1,
}
DEAD = {"teacher/mutual_information_share": 0.0, "student/mutual_information_share": 0.0}
TOTAL = 5000


def judge(out_dim: int = 64, crops: int = 64, center_momentum: float = 0.9) -> Judge:
    return Judge(
        out_dim=out_dim, crops=crops, warmup_steps=100, total_steps=TOTAL, center_momentum=center_momentum
    )


def after(*seen: dict[str, float], judge: Judge | None = None, step: int = 1000) -> Verdict:
    judge = judge or globals()["judge"]()
    verdicts = [judge.observe(step + 50 * index, HEALTHY | values) for index, values in enumerate(seen)]
    return verdicts[-1]


@pytest.mark.parametrize(
    ("values", "word", "advice"),
    [
        ({}, "healthy", "entropy is 0.500"),
        ({"teacher/mutual_information_share": 0.01}, "slow", "hardly"),
        ({"student/mutual_information_share": 0.01}, "slow", "hardly"),
        (DEAD | {"teacher/entropy_share": 0.999}, "collapsed-uniform", "lower loss.teacher_temp"),
        (DEAD | {"teacher/entropy_share": 0.01}, "collapsed-one-hot", "loss.center_momentum"),
        (DEAD | {"teacher/entropy_share": 0.84}, "collapsed-constant", "loss.centering"),
        # near ln K, from where runs have recovered
        (
            {"teacher/mutual_information_share": 0.0006, "student/mutual_information_share": 1e-4},
            "slow",
            "0.0006 of its maximum",
        ),
        # a teacher so sharp that noise looks like information
        ({"student/mutual_information_share": 0.0005}, "slow", "0.0005 in the student"),
        ({"loss": math.nan}, "diverged", "optimizer.lr"),
        ({"grad_norm": math.inf}, "diverged", "grad_norm"),
        ({"grad_norm": None}, "healthy", "entropy is 0.500"),  # fp16 skipped the step
    ],
)
def test_the_word_and_its_evidence(values: dict[str, float], word: str, advice: str) -> None:
    verdict = after(values, values, values)
    assert verdict.word == word
    assert word in WORDS
    assert advice in verdict.evidence


def test_only_divergence_is_called_during_the_warmup() -> None:
    assert after(DEAD, DEAD, step=10).word == "warming-up"
    early = judge()
    assert early.observe(1, HEALTHY | DEAD).word == "warming-up"
    assert early.observe(2, HEALTHY | {"loss": math.nan}).word == "diverged"


def test_one_odd_batch_decides_nothing_and_a_run_can_recover_from_a_collapse() -> None:
    assert not after(DEAD, DEAD, {}).collapsed
    recovering = judge()
    assert after(DEAD, DEAD, DEAD, judge=recovering).collapsed
    verdict = after({}, {}, {}, judge=recovering, step=2000)
    assert verdict.word == "healthy"
    assert "until step 2000 the run was collapsed" in verdict.evidence


@pytest.mark.parametrize(
    ("center_momentum", "begins", "called", "lasting"),
    [
        (0.0, 1000, 1100, 1050),  # the third logged step in a row
        (0.9, 1000, 1100, 1050),
        (0.99, 1000, 1300, 1300),  # the center has covered 95 % of the way
        (0.99, 4800, 4900, 4850),  # the run ends before that
        (0.999, 1000, 4000, 4000),
        (0.9999, 1000, 1100, 1050),  # it would take 30,000 steps, more than the run has
    ],
)
def test_no_collapse_is_called_while_a_slow_center_can_still_catch_up(
    center_momentum: float, begins: int, called: int, lasting: int
) -> None:
    waiting = judge(center_momentum=center_momentum)
    verdicts = {
        step: waiting.observe(step, HEALTHY | (DEAD if step >= begins else {}))
        for step in range(500, TOTAL, 50)
    }
    assert min(step for step, verdict in verdicts.items() if verdict.collapsed) == called
    assert verdicts[begins - 50].word == "healthy"
    assert {verdicts[step].word for step in range(begins, called, 50)} == {"slow"}
    assert verdicts[called - 50].evidence.endswith(f"which is a collapse if it lasts until step {lasting}")


def test_thresholds_are_relative_to_the_information_that_few_crops_can_show() -> None:
    share = {"teacher/mutual_information_share": 0.01, "student/mutual_information_share": 0.01}
    assert after(share, share, share).word == "slow"
    assert after(share, share, share, judge=judge(out_dim=65536, crops=16)).word == "healthy"


def test_the_judge_of_a_run_is_built_from_its_configuration() -> None:
    words = ["loss.center_momentum=0.99", "head.out_dim=256", "trainer.batch_size=8"]
    with_center, without = (
        judge_of(compose([*words, f"loss.centering={centering}"]), warmup_steps=10, total_steps=TOTAL)
        for centering in ("mean", "none")
    )
    assert with_center.ceiling == pytest.approx(0.5)
    assert with_center.warmup_steps == 50
    assert with_center.catching_up == pytest.approx(300)
    assert without.catching_up == 3


def test_the_judge_continues_from_a_checkpoint() -> None:
    first = judge()
    after(DEAD, DEAD, judge=first)
    second = judge()
    second.load_state_dict(first.state_dict())
    assert second.verdict == first.verdict
    assert second.observe(1100, HEALTHY | DEAD).collapsed


def test_health_is_settled_after_the_warmups_and_a_fifth_of_the_run_without_a_break() -> None:
    run = Judge(
        out_dim=64, crops=64, warmup_steps=100, total_steps=2000, center_momentum=0.9, last_warmup_step=300
    )
    slow = {"teacher/mutual_information_share": 0.01}
    settled = {}
    for step in range(50, 2001, 50):
        run.observe(step, HEALTHY | (slow if 450 <= step <= 550 else {}))
        settled[step] = run.settled
        if step == 900:
            again = Judge(out_dim=64, crops=64, warmup_steps=100, total_steps=2000, center_momentum=0.9)
            again.load_state_dict(run.state_dict())
            assert (again.healthy_since, again.settled) == (run.healthy_since, False)
    assert not any(settled[step] for step in settled if step < 1050)
    assert all(settled[step] for step in settled if step >= 1050)


def test_health_with_a_slow_center_does_not_settle_before_the_center_could_catch_up() -> None:
    run = judge(center_momentum=0.999)
    steps = [step for step in range(50, TOTAL + 1, 50) if run.observe(step, HEALTHY) and run.settled]
    assert steps[0] == 3150  # 3,000 after the first verdict that is more than a warm-up
    assert Judge(out_dim=64, crops=64, warmup_steps=0, total_steps=9, center_momentum=0).settled is False
