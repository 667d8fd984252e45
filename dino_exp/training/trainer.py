"""The training loop in order: schedules, teacher, student, loss, clipping, step, EMA, diagnostics."""

from __future__ import annotations

import functools
import json
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.parallel import DistributedDataParallel

from dino_exp import machine
from dino_exp.config.schema import Config
from dino_exp.data.loader import BatchOrder, CropBatch, batches
from dino_exp.data.shared_batches import SharedBatches
from dino_exp.data.source import Splits
from dino_exp.dino import diagnostics
from dino_exp.dino.ema import update_teacher
from dino_exp.dino.model import NetworkOutput
from dino_exp.dino.optimizer import clip_gradients, freeze_last_layer
from dino_exp.dino.verdict import Verdict
from dino_exp.errors import MachineError
from dino_exp.eval.periodic import Round, main_figures
from dino_exp.parallel import distributed
from dino_exp.parallel.interrupt import Interrupt
from dino_exp.parallel.micro_batch import join_micro_batches, micro_batch
from dino_exp.runs.kept_checkpoints import Keeping
from dino_exp.runs.run_directory import RunDirectory, to_json
from dino_exp.seeding import seed_step
from dino_exp.tracker import Tracker
from dino_exp.training import checkpoint
from dino_exp.training.clock import Clock
from dino_exp.training.graph import GraphedPasses, graphed_passes
from dino_exp.training.progress import RunProgress
from dino_exp.training.training_state import TrainingState

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0
LEAVE_SECONDS = 20
"""How long one of several processes that is to stop waits for its batch, to end the step with the others."""


class Passes(NamedTuple):
    """What the forward and backward passes of a step leave, besides gradients."""

    losses: list[torch.Tensor]
    """The loss of each part of the batch, which add up to that of all."""
    teacher: NetworkOutput
    """The teacher's output for the global crops."""
    teacher_probabilities: torch.Tensor | None
    """(2·B, K), centered and sharpened; only of observed steps."""
    students: list[NetworkOutput]
    """The student's output for the global crops of each part; only of observed steps."""


class Trainer(TrainingState):
    """The loop that trains a run's networks."""

    def __init__(self, cfg: Config, splits: Splits, device: torch.device) -> None:
        super().__init__(cfg, splits, device)
        wanted = cfg.trainer.cuda_graph
        self.shared: SharedBatches | None = None
        """Where batches are shared with other runs, if they are."""
        self.graph: GraphedPasses[Passes] | None = graphed_passes(self.student, device) if wanted else None

    # ---- one step -------------------------------------------------------------------------------

    def train_step(
        self, views: Sequence[torch.Tensor], observe: bool = False
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Make one optimization step (paper, algorithm 1).

        Args:
            views: augmented global crops (2·B, C, S, S), then local ones (n·B, C, s, s) if any.
            observe: whether to compute diagnostics as well.

        Returns:
            The loss of these views; and the diagnostics over all processes, by their names in metrics.jsonl.
            All of them are still on the device.
        """
        teacher_temp = self._apply_schedules()
        if self.graph is None or observe or not isinstance(teacher_temp, torch.Tensor):
            passes = self._forward_backward(views, teacher_temp, observe)
        else:
            passes = self.graph(self._forward_backward, views, teacher_temp)
        loss = torch.stack(passes.losses).sum()
        self._not_finite += ~torch.isfinite(loss)
        center_before = self.dino_loss.center.clone()
        self.dino_loss.move_center(passes.teacher.logits)
        grad_norm = self._update()
        return loss, self._observe(passes, loss, grad_norm, center_before) if observe else {}

    def _apply_schedules(self) -> torch.Tensor | float:
        """Set learning rate, weight decay and random numbers of this step, and return its τ_t.

        τ_t is on the device, where a graph can read it; but 0 stays a number, as it is another computation.
        """
        plan, step = self.plan, self.step
        seed_step(self.cfg.trainer.seed, step, distributed.rank())
        for number, group in enumerate(self.optimizer.param_groups):
            group["lr"] = float(plan.lr[step])
            group["weight_decay"] = float(plan.weight_decay[step]) if number == 0 else 0.0
        teacher_temp = self.dino_loss.teacher_temp_at(plan.epoch(step))
        return self.dino_loss.center.new_full((), teacher_temp) if teacher_temp else 0.0

    def _forward_backward(
        self, views: Sequence[torch.Tensor], teacher_temp: torch.Tensor | float, observe: bool = False
    ) -> Passes:
        """Compute the loss, and the student's gradients instead of those of the step before.

        The process's share of the batch is computed in `trainer.accumulate` parts. The teacher computes all
        of them before the student begins, so that centering and sharpening see the entire batch. A CUDA graph
        records this function: it may wait for no tensor's value, and depends on its arguments, parameters and
        buffers alone.
        """
        parts, batch = self.cfg.trainer.accumulate, len(views[0]) // 2
        with torch.no_grad(), self._autocast():
            teacher = join_outputs(
                [self.teacher([micro_batch(views[0], batch, part, parts)]) for part in range(parts)]
            )
        probabilities = self.dino_loss.teacher_probabilities(teacher.logits, teacher_temp)
        kept = probabilities.clone() if observe else None  # the loss uses them up
        passes = Passes([], teacher, kept, [])

        self.optimizer.zero_grad(set_to_none=True)
        for part in range(parts):
            with self._averaged_gradients(part == parts - 1):
                with self._autocast():
                    student = self.student_of_all([micro_batch(view, batch, part, parts) for view in views])
                targets = micro_batch(probabilities, batch, part, parts)
                loss = self.dino_loss.cross_entropy(student.logits, targets) / parts
                self.scaler.scale(loss).backward()
            passes.losses.append(loss.detach())
            if observe:
                passes.students.append(
                    NetworkOutput(*(rows[: 2 * batch // parts].detach() for rows in student))
                )
        return passes

    def _update(self) -> torch.Tensor:
        """Move student and teacher, and count the step; return the gradients' norm before clipping."""
        plan, step = self.plan, self.step
        self.scaler.unscale_(self.optimizer)
        grad_norm = clip_gradients(self.parameters, self.cfg.optimizer.clip_grad)
        if step < plan.freeze_steps:
            freeze_last_layer(self.student.head)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        update_teacher(self.teacher_parameters, self.parameters, float(plan.ema_momentum[step]))
        self.step += 1
        return grad_norm

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self.autocast_type, enabled=self.autocast_type is not None)

    def _averaged_gradients(self, last: bool) -> AbstractContextManager[Any]:
        """Average gradients over the processes once per step: in the backward pass of the last part."""
        if isinstance(self.student_of_all, DistributedDataParallel) and not last:
            return self.student_of_all.no_sync()
        return nullcontext()

    @torch.no_grad()
    def _observe(
        self, passes: Passes, loss: torch.Tensor, grad_norm: torch.Tensor, center_before: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return the diagnostics of the step that has just been made."""
        student, probabilities = join_outputs(passes.students), passes.teacher_probabilities
        assert probabilities is not None
        student_probabilities = torch.softmax(student.logits.float() / self.dino_loss.student_temp, dim=-1)
        observed = diagnostics.observe(student, passes.teacher, student_probabilities, probabilities)
        global_loss = distributed.mean(loss.clone())
        return observed | {
            "loss": global_loss,
            "kl": global_loss - observed["teacher/entropy"],
            "grad_norm": grad_norm,
            "center_norm": self.dino_loss.center.norm(),
            "center_change": (self.dino_loss.center - center_before).norm(),
            "teacher_student_distance": diagnostics.relative_distance(
                self.parameters, self.teacher_parameters
            ),
            "not_finite": distributed.total(self._not_finite.clone()),
        }

    # ---- the loop -------------------------------------------------------------------------------

    def fit(
        self, directory: RunDirectory, tracker: Tracker, progress: RunProgress, interrupt: Interrupt
    ) -> str:
        """Train from the current step to the end.

        Returns:
            The state of the run: finished (with `trainer.on_healthy=stop` also before its last step),
            preempted, collapsed (`trainer.on_collapse=stop`) or failed (diverged).

        Raises:
            Stopped: a signal arrived during an evaluation; the steps before it are saved.
        """
        cfg, plan = self.cfg.trainer, self.plan
        keeping = Keeping.of(cfg.keep_checkpoints, cfg.checkpoint_every)
        self.join()
        if self.step == 0:
            self._log_untrained(directory, tracker, progress, interrupt)
        clock = Clock()
        if self.due:  # the run was stopped during the evaluations of this step
            self._complete(directory, tracker, progress, interrupt)
            self._save_last(directory, clock)
            clock.skip()
        if self.ends_early and self.step < plan.stop_step:  # it was stopped while its plots were drawn
            return self.ends_early
        order = BatchOrder(
            len(self.splits.train),
            plan.batch_size,
            cfg.seed,
            self.step,
            plan.stop_step,
            distributed.rank(),
            distributed.count(),
        )
        loader = self._delivered(order, directory, interrupt, clock)
        for batch in clock.waiting_for(loader):
            interrupt.begin_step()
            self.unreadable.add(batch.corrupt.tolist())
            following = self.step + 1
            last = following == plan.stop_step
            evaluate = last or following % plan.eval_steps == 0
            keep = keeping.includes(following)
            save = last or keep or following % cfg.checkpoint_every == 0
            observe = evaluate or save or following == 1 or following % cfg.log_every == 0

            _, observed = self.train_step(self.augmented(batch), observe)
            progress.step(self.step)
            stopped = interrupt.end_step()

            if observe or stopped:
                self.unreadable.count()
            if observe:
                self.last_metrics = metrics = self._metrics(observed, clock)
                verdict = self._judge(metrics, tracker)
                metrics["verdict"] = verdict.word
                if verdict.word == "diverged":
                    self._log(directory, metrics)
                    return "failed"
                self.due = evaluate and bool(self.evaluations.evaluations)
                if self.due:
                    self._save_last(directory, clock)  # evaluations may outlast the time before a SIGKILL
                self._complete(directory, tracker, progress, interrupt)
                if evaluate:
                    clock.skip()
            if clock.due(HEARTBEAT_SECONDS):
                directory.write_status(step=self.step)
            if save or self.ends_early or stopped:
                self._save_last(directory, clock)
            if keep and distributed.is_main():
                keeping.keep(directory.checkpoints / "last.pt", self.step)
            if self.ends_early and not last:
                return self.ends_early
            if stopped and not last:
                return "preempted"
        self.seconds += clock.total()
        return "finished" if self.step == plan.stop_step else "preempted"

    def _delivered(
        self, order: BatchOrder, directory: RunDirectory, interrupt: Interrupt, clock: Clock
    ) -> Iterator[CropBatch]:
        """Yield the batches of `order`, less when a stop signal arrives while one is waited for.

        Where a batch does not come, the steps so far are saved. Raises MachineError as `batches` does.
        """

        def look(waited: float) -> None:
            # of several processes the others are in the step, and end with an error if this one leaves
            if interrupt.signal is not None and (waited > LEAVE_SECONDS or not distributed.several()):
                raise KeyboardInterrupt

        pin_memory = self.device.type == "cuda"
        try:
            yield from batches(self.crop_batches, order, self.workers, pin_memory, look, self.shared)
        except (MachineError, KeyboardInterrupt) as error:
            if self.step > order.start_step:
                self._save_last(directory, clock)
            if isinstance(error, MachineError) or distributed.several():
                raise
        finally:
            if self.shared is not None:
                self.shared.needs_from(order.stop_step)

    def augmented(self, batch: CropBatch) -> list[torch.Tensor]:
        """Return the crops of both resolutions on the device, augmented and normalized, crop-major.

        On a GPU this is enqueued in a stream of its own, which later work waits for. The host is ahead of the
        device and comes here while the step before is still being computed, so both run at the same time.
        """
        if self.device.type != "cuda":
            return self._augmented(batch)
        with torch.cuda.stream(self._input_stream):
            views = self._augmented(batch)
        stream = torch.cuda.current_stream(self.device)
        stream.wait_stream(self._input_stream)
        for view in views:
            view.record_stream(stream)  # or the next batch could get its memory while a step uses it
        return views

    @functools.cached_property
    def _input_stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.device)

    def _augmented(self, batch: CropBatch) -> list[torch.Tensor]:
        views, start = [], 0
        for crops in (batch.global_crops, batch.local_crops):
            if len(crops):
                part = batch.parameters[start : start + len(crops)].flatten(0, 1)
                on_device = crops.flatten(0, 1).to(self.device, non_blocking=True)
                finished = part.shape[1] == 0  # except for normalization: data.backend=pil
                views.append(self.augment.normalize(on_device) if finished else self.augment(on_device, part))
            start += len(crops)
        return views

    def _metrics(self, observed: dict[str, torch.Tensor], clock: Clock) -> dict[str, Any]:
        """Return the line of metrics.jsonl for this step; nothing else waits for the device.

        All processes get that of rank 0, so that they reach the same verdict.
        """
        values = diagnostics.fetch(observed)
        if values.pop("not_finite") > 0:
            values["loss"] = math.nan
        overflowed = self.scaler.is_enabled() and not math.isfinite(values["grad_norm"])
        step, plan = self.step, self.plan
        ln_k = math.log(plan.out_dim)
        steps, seconds, waited = clock.lap()
        self.training_seconds += seconds
        metrics = {
            "step": step,
            "epoch": plan.epoch(step - 1),
            "images": step * plan.batch_size,
            **values,
            # in fp16 the scaler skips such a step and lowers its factor; otherwise the run has diverged
            "grad_norm": None if overflowed else values["grad_norm"],
            "kl_share": values["kl"] / ln_k,
            "ln_k": ln_k,
            "lr": float(plan.lr[step - 1]),
            "weight_decay": float(plan.weight_decay[step - 1]),
            "ema_momentum": float(plan.ema_momentum[step - 1]),
            "teacher_temp": self.dino_loss.teacher_temp_at(plan.epoch(step - 1)),
            "images_per_second": steps * plan.batch_size / seconds,
            "data_wait_share": waited / seconds,
            "peak_memory_mib": machine.peak_memory_mib(self.device),
        }
        return distributed.from_main(metrics)

    def _judge(self, metrics: dict[str, Any], tracker: Tracker) -> Verdict:
        """Return the verdict after a logged step, with a warning when a collapse or divergence is new."""
        before, verdict = self.judge.verdict.word, self.judge.observe(self.step, metrics)
        if verdict.word != before and (verdict.collapsed or verdict.word == "diverged"):
            log.warning("Step %s: %s. The %s.", f"{self.step:,}", verdict.word, verdict.evidence)
            tracker.alert(verdict.word, verdict.evidence)
        return verdict

    def evaluated(self, folder: Path) -> Round:
        """Return what `eval=...` finds now; nothing of the student before the first step."""
        with self.uncompiled():
            return self.evaluations.evaluate(folder, self.student.backbone if self.step else None)

    def _evaluate(self, directory: RunDirectory, tracker: Tracker, interrupt: Interrupt) -> dict[str, float]:
        """Return the figures of the evaluations, and send their images to the tracker."""
        found = interrupt.at_once(lambda: self.evaluated(directory.plots / "eval"))
        for name, path in found.images.items():
            tracker.image(name, path, self.step)
        return found.figures

    def _complete(
        self, directory: RunDirectory, tracker: Tracker, progress: RunProgress, interrupt: Interrupt
    ) -> None:
        """Make the evaluations if they are due, and write the line of this step."""
        metrics = self.last_metrics
        if self.due:
            figures = self._evaluate(directory, tracker, interrupt)
            metrics |= figures
            self.due = False
            if self.evaluations.improved(figures):
                self._save(directory, "best.pt")
        self._log(directory, metrics)
        tracker.log(metrics, self.step)
        progress.logged(self.step, metrics, self.judge.verdict)

    def _log_untrained(
        self, directory: RunDirectory, tracker: Tracker, progress: RunProgress, interrupt: Interrupt
    ) -> None:
        first = self.evaluations.first = self._evaluate(directory, tracker, interrupt)
        if not first:
            return
        metrics: dict[str, Any] = {"step": 0, "epoch": 0, "images": 0, **first}
        whose = "of the untrained network"
        if self.taken:
            metrics["init_from"], whose = self.cfg.init_from, "before the first step"
        self._log(directory, metrics)
        tracker.log(metrics, 0)
        for name, value in main_figures(first).items():
            progress.console.print(f"{'k-NN' if name == 'knn_top1' else name} {whose}: {value:.1f}%")

    @property
    def ends_early(self) -> str | None:
        """The state in which the run ends at this step because of its verdict; None if it goes on."""
        if self.judge.verdict.collapsed and self.cfg.trainer.on_collapse == "stop":
            return "collapsed"
        if self.judge.settled and self.cfg.trainer.on_healthy == "stop":
            return "finished"
        return None

    def _log(self, directory: RunDirectory, metrics: dict[str, Any]) -> None:
        self.logged.append(json.loads(to_json(metrics)))  # as the file has it: null for NaN
        directory.append_metrics(metrics)

    def _save_last(self, directory: RunDirectory, clock: Clock) -> None:
        self.seconds += clock.total()
        self._save(directory, "last.pt")

    def _save(self, directory: RunDirectory, name: str) -> None:
        if distributed.is_main():
            directory.flush_metrics()  # a line that a resume does not write again must not be lost either
            checkpoint.save(directory.checkpoints / name, self.state())


def join_outputs(parts: Sequence[NetworkOutput]) -> NetworkOutput:
    """Join the outputs for the global crops of all parts of a batch, crop-major."""
    return NetworkOutput(*(join_micro_batches(rows, crops=2) for rows in zip(*parts, strict=True)))
