"""Components of a user's own module, from the front door: trained, resumed, evaluated, exported and swept."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from launchers.__main__ import main as launchers
from tests.programs import Program, run_program
from tests.their_modules import write_images, write_module

MODULE = "my_package.components"
SMALL = ("experiment=debug", "trainer.batch_size=8", "eval.every_epochs=4", "trainer.epochs=8")
GARDEN = ("data=garden", "data.root=images/train", f"plugins=[{MODULE}]")
OWN = (*SMALL, *GARDEN, "backbone=two_layers", "optimizer=adam_beta", "optimizer.warmup_epochs=1", "name=own")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a working folder with a module of components and with images."""
    folder = tmp_path_factory.mktemp("theirs")
    write_images(folder / "images")
    write_module(folder, MODULE)
    return folder


@pytest.fixture(scope="module")
def run(here: Path) -> Path:
    """Return a run with components of that module, which was stopped, and resumed with changed code."""
    stopped = Program("train.py", *OWN, folder=here)
    stopped.until_it_says("step 2/")
    stopped.signal(signal.SIGTERM)
    assert stopped.wait() == 128 + signal.SIGTERM, stopped.output
    file = here / "my_package" / "components.py"
    file.write_text(f"{file.read_text()}\n# a change\n")
    resumed = run_program("train.py", *OWN, folder=here)
    assert resumed.returncode == 0, resumed.output
    assert "Resuming from step" in resumed.output
    assert f"The code of plugins=[{MODULE}] has changed since" in resumed.output
    (directory,) = (here / "outputs" / "own").iterdir()
    return directory


def figures(run: Path) -> list[dict[str, float]]:
    """Return losses and k-NN of a run."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{key: line[key] for key in ("step", "loss", "knn_top1") if key in line} for line in lines]


def test_a_run_of_ones_own_components_is_stopped_resumed_and_shown(here: Path, run: Path) -> None:
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    assert run.name.startswith("two_layers_")
    again = run_program("train.py", *OWN, folder=here)
    assert "This run has already finished" in again.output
    report = run_program("report.py", str(run), folder=here.parent)  # where the module is not
    assert report.returncode == 0, report.output


def test_the_same_images_train_the_same_by_our_own_source(here: Path) -> None:
    for name, words in {"theirs": GARDEN, "ours": ("data=image_folder", "data.root=images/train")}.items():
        program = run_program("train.py", *SMALL, *words, f"name={name}", folder=here)
        assert program.returncode == 0, program.output
    (theirs,), (ours,) = ((here / "outputs" / name).iterdir() for name in ("theirs", "ours"))
    assert len(figures(theirs)) == 33  # the untrained network, and 32 steps
    assert figures(theirs) == figures(ours)
    assert theirs.name != ours.name


def test_a_probe_set_judges_an_own_source(here: Path) -> None:
    probe = ("data.probe.train=images/train", "data.probe.val=images/val")
    program = run_program("train.py", *SMALL, *GARDEN, *probe, "name=judged", folder=here)
    assert program.returncode == 0, program.output
    (judged,), (own,) = ((here / "outputs" / name).iterdir() for name in ("judged", "theirs"))
    assert figures(judged) == figures(own)
    assert judged.name != own.name


def test_evaluating_and_exporting_needs_the_module_named_again(here: Path, run: Path) -> None:
    evaluate = ("evaluate.py", f"run={run}", "eval=knn", "device=cpu")
    export = ("-m", "dino_exp.export", f"run={run}", "format=onnx")
    for words in (evaluate, export):
        refused = run_program(*words, folder=here)
        assert refused.returncode == 2, refused.output
        assert refused.stderr == (
            f"{run}: its backbone=two_layers, optimizer=adam_beta or data=garden is not of this project; if "
            f"you trust the code that has it, add plugins=[{MODULE}].\n"
        )
        program = run_program(*words, f"plugins=[{MODULE}]", folder=here)
        assert program.returncode == 0, program.output
    (record,) = json.loads((run / "evaluations.json").read_text())
    assert record["figures"]["top1_k20"] == figures(run)[-1]["knn_top1"]
    timm = run_program(*export[:3], "format=timm", f"plugins={MODULE}", folder=here)
    assert timm.returncode == 2
    assert timm.stderr.startswith("format = timm: backbone=two_layers is a network of your own")


def test_a_sweep_on_this_machine_imports_the_module_in_its_jobs(here: Path) -> None:
    words = ("-m", *OWN, "trainer.epochs=1", "trainer.seed=0,1", "hydra/launcher=local", "name=swept")
    sweep = run_program("train.py", *words, folder=here)
    assert sweep.returncode == 0, sweep.output
    assert launchers(["status", str(here / "outputs" / "swept")]) == 0
