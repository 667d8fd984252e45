import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from dino_exp.errors import UserError
from dino_exp.eval.ranking import average_precision, safe_pickle
from tests.eval.subjects import Runs


@pytest.mark.parametrize(
    ("ranks", "positives", "expected"),
    [
        ([0, 1, 2], 3, 1.0),
        ([1], 1, (0 / 1 + 1 / 2) / 2),
        ([0, 3], 2, ((1 + 1) / 2 + (1 / 3 + 2 / 4) / 2) / 2),
        ([0, 3], 4, ((1 + 1) / 2 + (1 / 3 + 2 / 4) / 2) / 4),
        ([], 2, 0.0),
    ],
)
def test_average_precision_is_the_area_under_trapezoids(
    ranks: list[int], positives: int, expected: float
) -> None:
    assert average_precision.average_precision(ranks, positives) == pytest.approx(expected, abs=1e-12)


def test_scikit_learns_average_precision_differs() -> None:
    steps = average_precision_score([1, 0, 0, 1], [4, 3, 2, 1])
    assert steps == pytest.approx((1 + 2 / 4) / 2)
    assert steps != pytest.approx(average_precision.average_precision([0, 3], 2))


def test_scores_ignore_junk_and_skip_queries_without_positives() -> None:
    # Junk 9 and 7 come before positives 2 and 4, junk 8 after all: ranks 0, 2 of what remains.
    orders = np.array([[9, 2, 5, 7, 4, 8], [2, 4, 5, 7, 8, 9], [4, 2, 5, 7, 8, 9]])
    positives = [np.array([4, 2]), np.array([], dtype=int), np.array([9])]
    junk = [np.array([7, 8, 9]), np.array([2]), np.array([], dtype=int)]
    found = average_precision.scores(orders, positives, junk, [1, 2, 10])
    first = ((1 + 1) / 2 + (1 / 2 + 2 / 3) / 2) / 2
    last = (0 / 5 + 1 / 6) / 2
    assert found.queries == 2
    assert found.mean_average_precision == pytest.approx((first + last) / 2)
    # At 10 the first query is counted up to its last positive, 2 of 3, and the last one 1 of 6.
    assert found.precision_at == pytest.approx({1: 0.5, 2: (1 / 2 + 0) / 2, 10: (2 / 3 + 1 / 6) / 2})
    assert np.isnan(
        average_precision.scores(orders[:1], [np.array([])], [np.array([])], [1]).mean_average_precision
    )


def test_best_first_by_cosine_in_blocks_with_ties_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    database = torch.tensor([[0.0, 1.0], [5.0, 0.1], [1.0, 1.0], [1.0, 1.0]])
    queries = torch.tensor([[1.0, 0.0], [0.0, 9.0], [1.0, 1.0]])
    monkeypatch.setattr(average_precision, "SIMILARITIES", 4)
    assert average_precision.best_first(queries, database).tolist() == [
        [1, 2, 3, 0],
        [0, 2, 3, 1],
        [2, 3, 1, 0],
    ]
    assert average_precision.best_first(queries, database, 2).tolist() == [[1, 2], [0, 2], [2, 3]]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_containers_and_arrays_are_read(tmp_path: Path, protocol: int) -> None:
    big = np.arange(6, dtype=">i4").reshape(2, 3)
    content: dict[str, Any] = {
        "gnd": [(1, 2.5, None, True, b"\xff\0", 1 + 2j), {3}, frozenset({"a"}), b""],
        "imlist": ["é"],
        "arrays": [big, np.asfortranarray(big), np.array(["ab", "c"]), np.array(2.5), np.zeros((0,))],
        "scalars": [np.int64(300), np.float32(0.5)],
    }
    path = tmp_path / "gnd.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    found = safe_pickle.load(path)
    assert (found["gnd"], found["imlist"]) == (content["gnd"], content["imlist"])
    for read, written in zip(found["arrays"], content["arrays"], strict=True):
        np.testing.assert_array_equal(read, written)
    assert found["arrays"][1].flags.f_contiguous
    assert found["scalars"] == content["scalars"]


def test_a_pickle_of_python_2_is_read(tmp_path: Path) -> None:
    """Read what Python 2 wrote of {'a\\xe9': numpy.array([200, 1], numpy.int16)} with protocol 2."""
    content = (
        b"\x80\x02}q\x00U\x02a\xe9cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02i2K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        b"K\x00tb\x89U\x04\xc8\x00\x01\x00tbs."
    )
    path = tmp_path / "gnd.pkl"
    path.write_bytes(content)
    found = safe_pickle.load(path)
    assert {key: array.tolist() for key, array in found.items()} == {"aé": [200, 1]}


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", ["system", "eval", "mkdir"])
def test_a_pickle_that_would_run_something_is_refused(tmp_path: Path, name: str, protocol: int) -> None:
    trace = tmp_path / "trace"
    call: Any = {"system": os.system, "eval": eval, "mkdir": Path.mkdir}[name]
    argument = {"system": f"touch {trace}", "eval": f"open({str(trace)!r}, 'w')", "mkdir": trace}[name]
    path = tmp_path / "gnd_roxford5k.pkl"
    path.write_bytes(pickle.dumps({"gnd": [Runs(call, argument)]}, protocol=protocol))
    with pytest.raises(UserError, match=r"gnd_roxford5k.pkl: holds \S*(system|eval|getattr|Path)") as refusal:
        safe_pickle.load(path)
    assert "it was not run" in str(refusal.value)
    assert not trace.exists()


@pytest.mark.parametrize(
    "array", [np.array([{}, None]), np.zeros(2, dtype=[("a", "i4")]), np.zeros(1, "M8[s]")]
)
def test_arrays_that_are_not_plain_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    path = tmp_path / "gnd.pkl"
    path.write_bytes(pickle.dumps(array, protocol=2))
    with pytest.raises(UserError, match="a numpy array of type"):
        safe_pickle.load(path)


def test_a_file_that_is_not_a_pickle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "gnd.pkl"
    for content in (b"", b"<html>", pickle.dumps(list(range(100)))[:50]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"gnd.pkl: not a readable pickle"):
            safe_pickle.load(path)
    with pytest.raises(UserError, match="No such file"):
        safe_pickle.load(tmp_path / "none.pkl")
