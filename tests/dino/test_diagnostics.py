"""The diagnostics of outputs with known statistics."""

import math

import pytest
import torch

from dino_exp.dino.diagnostics import describe, effective_ranks, fetch, observe, relative_distance, spread
from dino_exp.dino.model import NetworkOutput


def output(n: int = 8, k: int = 4) -> NetworkOutput:
    generator = torch.Generator().manual_seed(0)
    return NetworkOutput(*(torch.randn(n, size, generator=generator) for size in (6, 5, k)))


CASES = {  # probabilities of 8 crops over 4 prototypes -> entropy, marginal entropy, share used
    "uniform": (torch.full((8, 4), 0.25), math.log(4), math.log(4), 0.25),
    "one hot": (torch.eye(4)[[2] * 8], 0.0, 0.0, 0.25),
    "constant in between": (torch.tensor([[0.5, 0.5, 0, 0]]).expand(8, 4), math.log(2), math.log(2), 0.25),
    "all that can be known": (torch.eye(4)[[0, 1, 2, 3] * 2], 0.0, math.log(4), 1.0),
}


@pytest.mark.parametrize("case", CASES)
def test_entropies_and_mutual_information(case: str) -> None:
    probabilities, entropy, marginal, used = CASES[case]
    seen = fetch(describe(output(), probabilities))
    assert seen["entropy"] == pytest.approx(entropy, abs=1e-6)
    assert seen["entropy_share"] == pytest.approx(entropy / math.log(4), abs=1e-6)
    assert seen["marginal_entropy"] == pytest.approx(marginal, abs=1e-6)
    assert seen["mutual_information"] == pytest.approx(marginal - entropy, abs=1e-6)
    assert seen["prototypes_used"] == pytest.approx(used)
    assert seen["prototypes_perplexity"] == pytest.approx(4 * used if used == 1 else 1.0, rel=1e-5)


def test_effective_rank_counts_equal_directions() -> None:
    assert effective_ranks(torch.eye(7))[0].item() == pytest.approx(7, rel=1e-9)
    assert effective_ranks(torch.eye(7), most=5)[0].item() == pytest.approx(5, rel=1e-9)


@pytest.mark.parametrize(("n", "d"), [(512, 48), (40, 96)])
def test_effective_ranks_are_those_of_the_singular_values(n: int, d: int) -> None:
    generator = torch.Generator().manual_seed(0)
    healthy = torch.randn(n, d, generator=generator) * torch.logspace(0, -2, d)
    collapsed = healthy[:1].expand(n, d)
    duplicates = healthy[:8].repeat(n // 8, 1)
    nearly = healthy[:1] + 1e-4 * torch.randn(n, d, generator=generator)
    not_finite = healthy.clone()
    not_finite[3, 5] = math.nan
    networks = (healthy, collapsed, duplicates, nearly)
    for rows, rank in zip(networks, effective_ranks(*networks, not_finite)[:-1], strict=True):
        values = torch.linalg.svdvals(rows.double())
        expected = torch.special.entr(values / values.sum()).sum().exp()
        assert rank.item() == pytest.approx(expected.item(), rel=1e-4)
    ranks = [
        rank.item() for rank in effective_ranks(not_finite, torch.zeros(n, d), torch.full((n, d), math.inf))
    ]
    assert ranks == pytest.approx([math.nan, 1.0, math.nan], nan_ok=True)


def test_spread_is_one_when_even_and_zero_when_constant() -> None:
    even = torch.randn(4000, 64, generator=torch.Generator().manual_seed(1))
    assert spread(even).item() == pytest.approx(1, abs=0.02)
    assert spread(torch.ones(10, 5)).item() == pytest.approx(0, abs=1e-6)


def test_both_networks_are_named_and_local_crops_ignored() -> None:
    student, teacher = output(20), output(8)
    probabilities = torch.softmax(teacher.logits, 1)
    seen = observe(student, teacher, probabilities, probabilities)
    assert {name.split("/")[0] for name in seen} == {"student", "teacher"}
    assert seen["student/logit_spread"].item() == pytest.approx(student.logits[:8].std(0).mean().item())


def test_relative_distance() -> None:
    assert relative_distance([torch.tensor([3.0, 4.0])], [torch.tensor([3.0, 2.0])]).item() == pytest.approx(
        0.4
    )
