"""Sweeps on a real SLURM cluster, with training runs of seconds: whatever ends a job, nothing is lost."""

import csv
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet
import pytest
import torch

from dino_exp.runs.manifest import Manifest
from dino_exp.runs.run_directory import RunDirectory, read_metrics
from dino_exp.training import checkpoint
from tests.programs import Program, run_program, until

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]
SCRIPT = Path(__file__).with_name("cluster.sh")
SLURM = ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.partition=gpu"]
DETACHED = [*SLURM, "hydra.launcher.detach=true"]
SMALL = ["experiment=debug", "trainer.batch_size=8", "crops.local_number=1", "eval.every_epochs=1000"]
SHORT = [*SMALL, "trainer.max_steps=3"]
# Long enough to be stopped in the middle; with stochastic depth, so that random states matter.
LONG = [*SMALL, "trainer.epochs=2", "backbone.drop_path_rate=0.2"]
STEPS = 64


def cluster(*words: str) -> None:
    done = subprocess.run(["bash", str(SCRIPT), *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module", autouse=True)
def a_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Install, start and stop a cluster; SLURM's commands find it through SLURM_CONF."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or not Path("/etc/debian_version").exists():
        pytest.skip("a temporary SLURM cluster needs root on Debian")
    lab = tmp_path_factory.mktemp("slurm", numbered=True)
    os.environ["SLURM_LAB"], os.environ["SLURM_CONF"] = str(lab), str(lab / "slurm.conf")
    try:
        cluster("start")
    except AssertionError as error:
        pytest.skip(f"SLURM cannot be installed or started here: {str(error).splitlines()[-1]}")
    yield
    cluster("stop")
    del os.environ["SLURM_LAB"], os.environ["SLURM_CONF"]


def cache(folder: Path) -> dict[str, str]:
    return {"XDG_CACHE_HOME": str(folder / "cache")}


def train(folder: Path, *words: str) -> Program:
    return run_program("train.py", "-m", *words, folder=folder, environment=cache(folder))


def submit(folder: Path, name: str, *words: str) -> Path:
    """Submit a detached sweep, and return its folder."""
    done = train(folder, f"name={name}", *DETACHED, *words)
    assert done.returncode == 0, done.output
    return folder / "outputs" / name


def launchers(folder: Path, *words: str) -> Program:
    return run_program("-m", "launchers", *words, folder=folder, environment=cache(folder))


def wait(sweep: Path, code: int = 0) -> str:
    """Wait for the runs of a sweep, and return what was printed."""
    waited = launchers(sweep.parents[1], "wait", str(sweep))
    assert waited.returncode == code, waited.stdout
    return waited.stdout


def runs(sweep: Path) -> list[RunDirectory]:
    return [RunDirectory(sweep / name) for name in Manifest.load(sweep).runs]


def states(sweep: Path) -> list[str]:
    return [run.read_status()["state"] for run in runs(sweep)]


def job(sweep: Path) -> str:
    """Return the job of a sweep's first run."""
    found = next(iter(Manifest.load(sweep).runs.values())).job
    assert found
    return found


def steps(run: RunDirectory) -> list[int]:
    return [line["step"] for line in read_metrics(run.metrics_file)]


def in_the_middle(run: RunDirectory) -> int:
    """Wait until the run is in the middle, freeze its process, and return the process id.

    SLURM reacts slowly, and how far a run would get in the meantime depends on the machine.
    """
    until(lambda: len(steps(run)) > 12 or run.traceback_file.exists(), "the run is in the middle")
    assert not run.traceback_file.exists(), run.traceback_file.read_text()
    process = int(run.read_status()["pid"])
    os.kill(process, signal.SIGSTOP)
    return process


def started(folder: Path, name: str, *words: str) -> tuple[Path, RunDirectory, int]:
    """Return a new sweep, its only run in the middle, and the run's frozen process."""
    sweep = submit(folder, name, *LONG, *words)
    (run,) = runs(sweep)
    return sweep, run, in_the_middle(run)


def continue_after(number: signal.Signals, process: int) -> None:
    """Wait until SLURM has sent a signal to a frozen process, and let the process continue."""
    until(lambda: is_pending(number, process) or not is_frozen(process), f"the run gets {number.name}")
    with suppress(ProcessLookupError):  # SLURM itself sends SIGCONT before SIGTERM
        os.kill(process, signal.SIGCONT)


def is_pending(number: signal.Signals, process: int) -> bool:
    masks = (int(process_status(process).get(name, "0"), 16) for name in ("SigPnd", "ShdPnd"))
    return any(mask & 1 << (number - 1) for mask in masks)


def is_frozen(process: int) -> bool:
    return process_status(process).get("State", "").startswith("T")


def process_status(process: int) -> dict[str, str]:
    """Return the fields of /proc/PID/status; empty for a process that has exited."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except FileNotFoundError:
        return {}
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def restart_requeued(number: str, *changes: str) -> None:
    """Wait until a job is back in the queue, and start it without SLURM's delay of two minutes."""
    until(lambda: squeue(number) == "PENDING", f"job {number} is back in the queue")
    slurm("scontrol", "update", f"JobId={number}", "StartTime=now", *changes)


def slurm(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def squeue(number: str) -> str:
    command = ["squeue", "-h", "-j", number, "-o", "%T"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def sacct(number: str) -> list[str]:
    """Return the final states of a job's tasks, once accounting has them."""

    def ended() -> list[str]:
        lines = slurm("sacct", "-n", "-P", "-X", "-j", number, "-o", "State").splitlines()
        return [line.split()[0] for line in lines]  # CANCELLED by 0

    until(lambda: ended() and not {"RUNNING", "PENDING", "COMPLETING"} & set(ended()), "sacct has them")
    return ended()


def weights(run: RunDirectory) -> dict[str, torch.Tensor]:
    state = checkpoint.load(run.checkpoints / "last.pt")
    parts = ("student", "teacher", "loss")
    return {f"{part}.{name}": tensor for part in parts for name, tensor in state[part].items()}


def assert_same_as(reference: RunDirectory, run: RunDirectory, attempts: int) -> None:
    """Assert that a run has the weights and steps of a run that was never stopped."""
    assert run.read_status()["state"] == "finished"
    assert run.read_status()["attempt"] == attempts
    assert steps(run) == list(range(STEPS + 1))
    expected = weights(reference)
    found = weights(run)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    folder = tmp_path_factory.mktemp("reference")
    done = train(folder, "name=reference", *SLURM, *LONG)
    assert done.returncode == 0, done.output
    (run,) = runs(folder / "outputs" / "reference")
    return run


def test_a_grid_runs_as_an_array_on_two_nodes_and_is_trained_once(tmp_path: Path) -> None:
    grid = ["loss.teacher_temp=0.02,0.03,0.04"]
    done = train(tmp_path, "name=grid", *SLURM, *SHORT, *grid)
    assert done.returncode == 0, done.output
    sweep = tmp_path / "outputs" / "grid"
    assert states(sweep) == ["finished"] * 3
    jobs = [entry.job for entry in Manifest.load(sweep).runs.values()]
    array = job(sweep).partition("_")[0]
    assert jobs == [f"{array}_{index}" for index in range(3)]
    assert sacct(array) == ["COMPLETED"] * 3
    assert set(slurm("sacct", "-n", "-P", "-X", "-j", array, "-o", "NodeList").split()) == {"n1", "n2"}

    again = train(tmp_path, "name=grid", *SLURM, *SHORT, *grid)
    assert again.returncode == 0
    assert "submitted 0 runs" in again.stdout
    assert "3 finished" in again.stdout
    more = ["trainer.seed=0,1", "hydra.launcher.dry_run=true"]
    larger = train(tmp_path, "name=grid", *SLURM, *SHORT, *grid, *more)
    assert "3 of 6 runs would be submitted" in larger.stdout


def test_a_run_on_two_nodes_with_two_tasks_each(tmp_path: Path) -> None:
    config = ["experiment=debug", "trainer.batch_size=64", "trainer.max_steps=6"]
    config += ["optimizer=sgd", "optimizer.warmup_epochs=1"]
    nodes = ["hydra.launcher.nodes=2", "hydra.launcher.gpus_per_node=2"]
    done = train(tmp_path, "name=four", *SLURM, *config, *nodes)
    assert done.returncode == 0, done.output
    one = train(tmp_path, "name=one", *config)
    assert one.returncode == 0, one.output
    (four,) = runs(tmp_path / "outputs" / "four")
    single = RunDirectory(tmp_path / "outputs" / "one" / four.path.name)
    assert four.read_summary()["environment"]["processes"] == 4
    logs = ["log.1.txt", "log.2.txt", "log.3.txt", "log.txt"]
    assert sorted(path.name for path in four.path.glob("log*.txt")) == logs
    lines = (read_metrics(run.metrics_file) for run in (four, single))
    ours, theirs = ([line["loss"] for line in own if line["step"]] for own in lines)
    assert len(ours) == 6
    assert ours == pytest.approx(theirs, abs=2e-5)


def test_a_killed_rank_ends_the_other_ranks(tmp_path: Path) -> None:
    sweep, run, first = started(tmp_path, "pair", "hydra.launcher.nodes=2")
    processes = [path.parent for path in Path("/proc").glob("[0-9]*/environ") if is_rank_1(path, run)]
    (rank_1,) = processes
    os.kill(int(rank_1.name), signal.SIGKILL)
    os.kill(first, signal.SIGCONT)
    until(lambda: squeue(job(sweep)) == "", "the job ends")
    assert sacct(job(sweep)) == ["FAILED"]
    assert run.read_status()["state"] == "failed"
    assert "log.1.txt: killed by SIGKILL" in run.traceback_file.read_text()


def is_rank_1(environ: Path, run: RunDirectory) -> bool:
    """Return whether a process is rank 1 of a run, and not a process of its loader or tracker."""
    try:
        words = environ.with_name("cmdline").read_bytes().split(b"\0")
        return str(run.path).encode() in words and b"RANK=1" in environ.read_bytes().split(b"\0")
    except OSError:
        return False


def test_a_preempted_run_resumes_bit_identically(tmp_path: Path, reference: RunDirectory) -> None:
    sweep, run, process = started(tmp_path, "preempted")
    urgent = ["-p", "urgent", "-N2", "--gpus-per-node=2", "--time=5", "-o", "/dev/null", "--wrap", "sleep 1"]
    slurm("sbatch", *urgent)
    continue_after(signal.SIGTERM, process)
    restart_requeued(job(sweep))
    assert run.read_status()["state"] == "preempted"
    tracker = run.read_status()["tracker_id"]
    wait(sweep)
    assert_same_as(reference, run, attempts=2)
    assert run.read_status()["tracker_id"] == tracker
    assert sacct(job(sweep)) == ["COMPLETED"]


def test_a_run_continues_after_the_time_limit(tmp_path: Path, reference: RunDirectory) -> None:
    limits = ["hydra.launcher.time_limit=30", "hydra.launcher.grace_seconds=60"]
    sweep, run, process = started(tmp_path, "limit", *limits)
    minutes = int(slurm("squeue", "-h", "-j", job(sweep), "-o", "%M").rpartition(":")[0]) + 2
    slurm("scontrol", "update", f"JobId={job(sweep)}", f"TimeLimit={minutes}")
    continue_after(signal.SIGUSR2, process)  # SLURM checks the limits twice a minute
    restart_requeued(job(sweep), "TimeLimit=30")
    assert run.read_status()["state"] == "preempted"
    wait(sweep)
    assert_same_as(reference, run, attempts=2)


def test_a_run_continues_after_its_node_dies(tmp_path: Path, reference: RunDirectory) -> None:
    sweep, run, _ = started(tmp_path, "node")
    node = slurm("squeue", "-h", "-j", job(sweep), "-o", "%N")
    cluster("node", node, "kill")
    kill_processes_of(run)
    try:
        restart_requeued(job(sweep))
        wait(sweep)
    finally:
        cluster("node", node, "start")
    assert_same_as(reference, run, attempts=2)


def kill_processes_of(run: RunDirectory) -> None:
    """Kill the process of a run and its worker."""
    child = run.read_status()["pid"]
    worker = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
    for process in (worker, child):
        os.kill(process, signal.SIGKILL)


def test_a_run_whose_worker_was_killed_is_lost_until_resume(tmp_path: Path, reference: RunDirectory) -> None:
    sweep, run, _ = started(tmp_path, "killed")
    kill_processes_of(run)
    assert sacct(job(sweep)) == ["FAILED"]
    status = launchers(tmp_path, "status", str(sweep))
    assert status.returncode == 1
    assert "lost" in status.stdout
    resumed = launchers(tmp_path, "resume", str(sweep))
    assert resumed.returncode == 0, resumed.stderr
    wait(sweep)
    assert_same_as(reference, run, attempts=2)
    assert len(Manifest.load(sweep).runs[run.path.name].jobs) == 2


def test_failed_runs_fail_their_own_jobs_only(tmp_path: Path) -> None:
    """One run collapses, one diverges, one cannot read its checkpoint, and one is killed."""
    words = [*SMALL, "trainer.epochs=6", "trainer.on_collapse=stop"]
    words += ["loss.centering=none", "loss.teacher_temp=0.005", "optimizer.lr=0.01,1e30,0.011,0.012"]
    sweep = submit(tmp_path, "failing", *words, "hydra.launcher.dry_run=false")
    collapsing, diverging, unreadable, killed = runs(sweep)
    unreadable.checkpoints.mkdir()
    (unreadable.checkpoints / "last.pt").write_bytes(b"not a checkpoint")
    os.kill(in_the_middle(killed), signal.SIGKILL)
    waited = wait(sweep, code=1)
    assert states(sweep) == ["collapsed", "failed", "failed", "failed"]
    assert sacct(job(sweep).partition("_")[0]) == ["COMPLETED", "FAILED", "FAILED", "FAILED"]
    assert "loss is nan" in diverging.traceback_file.read_text()
    assert "last.pt" in unreadable.traceback_file.read_text()
    assert "memory" in killed.traceback_file.read_text()
    assert waited.count("traceback.txt") == 3
    assert len(steps(collapsing)) < 192


def test_cancelled_runs_stay_cancelled_until_resume(tmp_path: Path) -> None:
    sweep = submit(tmp_path, "cancelled", *LONG, "trainer.seed=3,4")
    first, second = runs(sweep)
    held = [in_the_middle(run) for run in (first, second)]
    slurm("scancel", job(sweep))
    cancelled = launchers(tmp_path, "cancel", str(sweep), "seed=4")
    for process in held:
        continue_after(signal.SIGTERM, process)
    assert "cancelled 1 run" in cancelled.stdout
    waited = launchers(tmp_path, "wait", str(sweep))
    assert "2 cancelled" in waited.stdout, waited.stdout
    assert set(sacct(job(sweep).partition("_")[0])) <= {"CANCELLED", "FAILED"}
    assert all((run.checkpoints / "last.pt").exists() for run in (first, second))
    assert "submitted 2 runs" in launchers(tmp_path, "resume", str(sweep)).stdout
    wait(sweep)
    assert [steps(run) for run in (first, second)] == [[0, *range(1, STEPS + 1)]] * 2


def test_runs_continue_without_the_process_that_waits_for_them(tmp_path: Path) -> None:
    words = ["train.py", "-m", "name=left", *SLURM]
    waiting = Program(*words, *SHORT, "trainer.seed=0,1", folder=tmp_path, environment=cache(tmp_path))
    waiting.until_it_says("pending")
    waiting.kill()
    sweep = tmp_path / "outputs" / "left"
    wait(sweep)
    collected = launchers(tmp_path, "collect", str(sweep))
    assert collected.returncode == 0, collected.stderr
    with (sweep / "runs.csv").open() as file:
        lines = list(csv.DictReader(file))
    seen = [(line["trainer.seed"], line["state"], line["step"]) for line in lines]
    assert seen == [("0", "finished", "3"), ("1", "finished", "3")]
    table = pyarrow.parquet.read_table(sweep / "runs.parquet").to_pylist()
    assert [row["run"] for row in table] == [line["run"] for line in lines]
    assert all(row["attempts"] == 1 and row["knn_top1"] > 0 for row in table)

    waiting = Program(*words, *LONG, "trainer.seed=2", folder=tmp_path, environment=cache(tmp_path))
    waiting.until_it_says("pending")
    waiting.signal(signal.SIGINT)
    assert waiting.wait() == 130
    said = waiting.stdout
    assert "python -m launchers status outputs/left" in " ".join(said.split())
    assert "cancelled 1 run" in launchers(tmp_path, "cancel", str(sweep)).stdout
    wait(sweep)


def test_a_failed_run_does_not_stop_the_other_run_on_its_gpu(tmp_path: Path) -> None:
    sweep = submit(tmp_path, "shared", *SHORT, "optimizer.lr=0.01,1e30", "hydra.launcher.runs_per_gpu=2")
    wait(sweep, code=1)
    assert states(sweep) == ["finished", "failed"]
    assert {entry.job for entry in Manifest.load(sweep).runs.values()} == {job(sweep)}
    assert sacct(job(sweep)) == ["FAILED"]


def test_a_killed_run_is_lost_without_accounting(tmp_path: Path) -> None:
    cluster("accounting", "off")
    try:
        sweep = submit(tmp_path, "alone", *LONG, "trainer.seed=5,6")
        killed = runs(sweep)[1]
        in_the_middle(killed)
        kill_processes_of(killed)
        assert "1 finished, 1 lost" in wait(sweep, code=1)
    finally:
        cluster("accounting", "on")
