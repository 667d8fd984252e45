"""A file of weights is read without executing anything in it, and its kind is recognized."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dino_exp.errors import UserError
from dino_exp.runs.weights_file import digest, weights_file
from dino_exp.weights import read_weights as module
from dino_exp.weights.read_weights import Weights

STATE = {"cls_token": torch.ones(1, 1, 3000)}


def read_weights(file: Path) -> Weights:
    """Read a file for a network that consists of `STATE`."""
    return module.read_weights(file, STATE)


class RunsWhenUnpickled:
    """Object that executes a command when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: str) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(("function", "name"), [(os.system, "posix.system"), (exec, "exec")])
def test_code_in_a_pickle_is_refused_and_never_runs(
    tmp_path: Path, function: Callable[..., Any], name: str, zipped: bool
) -> None:
    witness = tmp_path / "executed"
    command = f"touch {witness}" if function is os.system else f"open({str(witness)!r}, 'w').close()"
    hostile = {"teacher": STATE, "args": RunsWhenUnpickled(function, command)}
    file = tmp_path / "hostile.pth"
    torch.save(hostile, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=rf"hostile.pth: contains {name}, which loading would execute"):
        read_weights(file)
    assert not witness.exists()
    pickle.loads(pickle.dumps(hostile))
    assert witness.exists(), "the file is harmless even to an unsafe reader, so this test shows nothing"


def test_of_all_classes_only_a_namespace_is_allowed(tmp_path: Path) -> None:
    content = {"teacher": {"module.backbone.x": torch.ones(2)}, "epoch": 3}
    torch.save(content | {"args": argparse.Namespace(arch="vit_small", lr=0.1)}, tmp_path / "released.pth")
    assert read_weights(tmp_path / "released.pth").kind == "a released DINO checkpoint, epoch 3"
    torch.save(content | {"args": argparse.ArgumentTypeError("x")}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"contains argparse\.ArgumentTypeError"):
        read_weights(tmp_path / "other.pth")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file_is_refused_and_the_complete_one_is_read(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(STATE, file)
    else:
        save_file(STATE, file)
    assert read_weights(file).teacher.keys() == {"backbone.cls_token"}
    cut(file)
    with pytest.raises(
        UserError, match=r"weights\S+: not a complete file of weights \(.+\); it is damaged, cut short"
    ):
        read_weights(file)


def test_a_flipped_bit_is_noticed_and_other_checkpoints_of_the_run_are_named(tmp_path: Path) -> None:
    for folder, fix in {"downloads": "or save it again.", "checkpoints": "of this run: best.pt."}.items():
        file = tmp_path / folder / "last.pt"
        file.parent.mkdir()
        file.with_name("best.pt").touch()
        torch.save(STATE, file)
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
        with pytest.raises(UserError, match=rf"weights \(Bad CRC-32 .*{fix}$"):
            read_weights(file)


def test_a_tensor_that_is_marked_as_a_folder_is_refused(tmp_path: Path) -> None:
    """One bit makes it one, and torch would then return memory that nobody has written to."""
    torch.save(STATE, tmp_path / "weights.pth")
    data = bytearray((tmp_path / "weights.pth").read_bytes())
    data[data.find(b"PK\1\2") + 38] ^= 0x10  # attributes of the first part in the directory at the end
    (tmp_path / "weights.pth").write_bytes(data)
    with pytest.raises(UserError, match=r"\(weights/\S+ is marked as a folder\)"):
        read_weights(tmp_path / "weights.pth")


def test_a_file_that_was_written_without_check_sums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, tmp_path / "weights.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(
        read_weights(tmp_path / "weights.pth").teacher["backbone.cls_token"], STATE["cls_token"]
    )


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ([torch.ones(1)], "contains a list, not weights by name"),
        ({}, "neither a network's tensors nor a DINO checkpoint; it contains nothing"),
        ({"epoch": 3, "lr": 0.1}, "it contains epoch, lr"),
        ({"teacher": {"x": 1}, "student": {}}, "it contains teacher, student"),
    ],
)
def test_the_error_names_the_content_of_a_file_without_weights(
    tmp_path: Path, content: Any, error: str
) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(UserError, match=error):
        read_weights(tmp_path / "other.pth")


@pytest.mark.parametrize("content", [b"hello\n" * 100, b"\x80", b"\x80\x04K\x01."])
def test_files_of_another_kind_are_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"other.pth: (not a complete file|contains a int)") as refusal:
        read_weights(tmp_path / "other.pth")
    assert "\n" not in str(refusal.value)


def rewritten(file: Path, how: int, storage: bytes = b"", claimed: int = 0) -> Path:
    """Write a file's zip archive again, with another way to store, storage, or number of values in it."""
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    with zipfile.ZipFile(file, "w", how) as archive:
        for name, content in members.items():
            if name.endswith("data.pkl") and claimed:
                content = content.replace((3000).to_bytes(2, "little"), claimed.to_bytes(2, "little"))
            archive.writestr(name, storage or content if name.endswith("/data/0") else content)
    return file


def test_no_file_takes_more_memory_than_it_has_bytes(tmp_path: Path) -> None:
    def saved(**state: torch.Tensor) -> Path:
        torch.save({"teacher": state}, tmp_path / "hostile.pth")
        return tmp_path / "hostile.pth"

    read_weights(rewritten(saved(**STATE), zipfile.ZIP_STORED))
    hostile: list[tuple[Callable[[], Path], str]] = [
        (lambda: rewritten(saved(**STATE), zipfile.ZIP_DEFLATED, bytes(10**8)), "compressed, to 100,00"),
        (lambda: rewritten(saved(**STATE), zipfile.ZIP_STORED, claimed=60_000), "hostile.pth: "),
        (lambda: saved(x=torch.zeros(1).expand(2**20, 2**20)), r"\(1048576, 1048576\), is not stored as its"),
        (lambda: saved(x=torch.zeros(3, device="meta")), r"\(3,\), is not stored as its values"),
        (lambda: saved(x=torch.zeros(3).to_sparse()), r"\(3,\), is not stored as its values"),
    ]
    for make, reason in hostile:
        with pytest.raises(UserError, match=reason):
            read_weights(make())


def test_odd_numbers_in_a_checkpoint_are_ignored(tmp_path: Path) -> None:
    content = {"teacher": {"backbone.blocks.99999999999999999999.x": torch.ones(2)}}
    for odd in ({"step": "x", "config": 1}, {"step": -1, "config": 1}, {"epoch": 2**70}):
        torch.save(content | odd, tmp_path / "odd.pth")
        assert read_weights(tmp_path / "odd.pth").kind == "a released DINO checkpoint"


def test_networks_under_the_keys_of_training_scripts_are_found(tmp_path: Path) -> None:
    for key in ("state_dict", "model"):
        torch.save({key: STATE, "epoch": 1, "optimizer": {"lr": 0.1}}, tmp_path / "wrapped.pth")
        assert read_weights(tmp_path / "wrapped.pth").teacher.keys() == {"backbone.cls_token"}


def test_weights_are_a_file_or_the_last_checkpoint_of_a_run(tmp_path: Path) -> None:
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    last.parent.mkdir(parents=True)
    for nothing, error in (
        (tmp_path / "run", "no checkpoints/last.pt in this folder"),
        (tmp_path / "lost.pth", "no such file"),
    ):
        with pytest.raises(UserError, match=error):
            weights_file(str(nothing))
        assert digest(str(nothing)) is None
    last.touch()
    with pytest.raises(UserError, match="an empty file"):
        weights_file(str(tmp_path / "run"))
    last.write_bytes(b"abc")
    assert weights_file(str(tmp_path / "run")) == last
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, example B.1
    assert digest(str(tmp_path / "run")) == known
    last.write_bytes(b"abcd")
    assert digest(str(last)) != known
