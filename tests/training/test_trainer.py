"""One step: in parts, in half precision, and compiled."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from dino_exp.backbone.vit import VisionTransformer
from dino_exp.config.compose import compose
from dino_exp.config.targets import build
from dino_exp.data.loader import BatchOrder, batches
from dino_exp.errors import UserError
from dino_exp.seeding import seed_step
from dino_exp.training import compilation
from dino_exp.training.trainer import Trainer
from tests.gpu_without_values import gpu_without_values

WITHOUT_BATCH_NORM = ("backbone.stem=patch", "trainer.batch_size=16")
DOUBLE = torch.float64


def trainer(cache: Path, *overrides: str) -> Trainer:
    cfg = compose(["experiment=debug", f"data.root={cache}", *overrides])
    return Trainer(cfg, build(cfg.data), torch.device("cpu"))


def views(of: Trainer, step: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Noise in the shapes of the configuration's crops."""
    batch, crops = of.cfg.trainer.batch_size, of.cfg.crops
    generator = torch.Generator().manual_seed(step)
    return [
        torch.randn(number * batch, 3, size, size, generator=generator, dtype=dtype)
        for number, size in ((2, crops.global_size), (crops.local_number, crops.local_size))
    ]


def weights(of: Trainer) -> dict[str, Any]:
    return {
        "student": of.student.state_dict(),
        "teacher": of.teacher.state_dict(),
        "loss": of.dino_loss.state_dict(),
    }


@pytest.mark.parametrize(
    ("extra", "centers"),
    [((), True), (("loss.centering=sinkhorn",), False), (("loss.center_init=first_batch",), True)],
)
def test_a_batch_in_four_parts_is_the_batch(tmp_path: Path, extra: tuple[str, ...], centers: bool) -> None:
    whole, in_parts = (
        trainer(tmp_path, *WITHOUT_BATCH_NORM, *extra, f"trainer.accumulate={parts}") for parts in (1, 4)
    )
    seen = []
    for each in (whole, in_parts):
        for network in (each.student, each.teacher, each.dino_loss):
            network.double()
        seen.append([each.train_step(views(each, step, DOUBLE), observe=True) for step in range(3)])
    torch.testing.assert_close(seen[1], seen[0], rtol=0, atol=1e-11)
    torch.testing.assert_close(weights(in_parts), weights(whole), rtol=0, atol=1e-12)
    assert (whole.dino_loss.center.abs().max() > 1e-3) == centers


def fill_freed_memory_with_nan(_: torch.Tensor) -> None:
    [torch.full((2**power,), torch.nan) for power in range(4, 20) for _ in range(8)]


def test_crops_smaller_than_the_stride_of_a_network_have_gradients_in_bfloat16(tmp_path: Path) -> None:
    of = trainer(tmp_path, "backbone=timm", "backbone.name=test_resnet", "trainer.precision=bf16")

    def before_its_gradient(_: Any, inputs: Any, output: torch.Tensor) -> None:
        output.register_hook(fill_freed_memory_with_nan)

    of.student.backbone.get_submodule("layer4.0.conv1").register_forward_hook(before_its_gradient)
    of.train_step(views(of, 0))
    gradients = [parameter.grad for parameter in of.student.backbone.parameters()]
    assert all(each is not None and torch.isfinite(each).all() for each in gradients)


def test_half_precision_keeps_loss_center_and_weights_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, half = trainer(tmp_path), trainer(tmp_path, "trainer.precision=bf16", "trainer.accumulate=2")
    dtypes = set()
    half.student.backbone.register_forward_hook(lambda _, inputs, output: dtypes.add(output.dtype))
    original = half.dino_loss.teacher_probabilities

    def noting(logits: torch.Tensor, temperature: float) -> torch.Tensor:
        dtypes.add(logits.dtype)
        probabilities = original(logits, temperature)
        assert probabilities.dtype == torch.float32
        return probabilities

    monkeypatch.setattr(half.dino_loss, "teacher_probabilities", noting)
    losses = [each.train_step(views(each, 0), observe=True)[0] for each in (plain, half)]
    assert dtypes == {torch.bfloat16, torch.float32}  # the backbone ends in a layer norm, the head does not
    assert losses[1].dtype == half.dino_loss.center.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in half.teacher.parameters())
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=0.02)


def test_the_scaler_sees_a_step_once_however_many_parts_it_has(tmp_path: Path) -> None:
    plain, scaled = (trainer(tmp_path, *WITHOUT_BATCH_NORM, "trainer.accumulate=4") for _ in range(2))
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    for step in range(3):
        for each in (plain, scaled):
            each.train_step(views(each, step))
    assert scaled.scaler.get_scale() == 2048  # grew once, after two whole steps
    torch.testing.assert_close(weights(scaled), weights(plain), rtol=1e-4, atol=1e-5)

    before = {name: value.clone() for name, value in scaled.student.state_dict().items()}
    bias = scaled.student.get_parameter("head.mlp.0.bias")
    torch.nn.init.constant_(bias, torch.inf)  # of one part as of all
    before["head.mlp.0.bias"] = bias.detach().clone()
    scaled.train_step(views(scaled, 3))
    assert scaled.scaler.get_scale() == 1024
    assert all(torch.equal(value, before[name]) for name, value in scaled.student.state_dict().items())


def test_what_a_step_draws_depends_on_seed_step_and_process_alone() -> None:
    drawn: dict[tuple[int, int, int], list[float]] = {}
    for key in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 0)):
        torch.rand(7)
        seed_step(*key)
        value = torch.rand(3).tolist()
        assert drawn.setdefault(key, value) == value
    assert len({tuple(value) for value in drawn.values()}) == 4


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo hides it, which is too late for an error
def test_a_compiled_network_trains_alike_and_is_evaluated_uncompiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # traces, joins and checks programs as always, without a minute of C++
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    # more blocks than programs that a function may have, each with its own rate of stochastic depth
    words = ("backbone.drop_path_rate=0.3", "backbone.depth=10", "optimizer.freeze_last_layer_epochs=0.25")
    plain, counters = trainer(tmp_path, *words), torch._dynamo.utils.counters
    counters.clear()  # of what other tests have compiled
    compiled = trainer(tmp_path, *words, "trainer.compile=true")
    # for student and teacher: a block, the last block's class tokens, and the head
    assert counters["stats"]["unique_graphs"] == 6
    torch.testing.assert_close(weights(compiled), weights(plain), rtol=0, atol=0)  # with the same names
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(4):
            losses = [each.train_step(views(each, step), step == 1)[0].item() for each in (plain, compiled)]
            assert losses[1] == pytest.approx(losses[0], abs=1e-4)
        top1 = [each.evaluated(tmp_path).figures["knn_top1"] for each in (plain, compiled)]
    assert top1[1] == pytest.approx(top1[0], abs=2)
    assert counters["stats"]["unique_graphs"] == 6
    assert not counters["graph_break"]


def test_without_a_compiler_auto_trains_uncompiled_and_true_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none_there(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("backend='inductor' raised:\nInvalidCxxCompiler: none found\nand forty lines more")

    monkeypatch.setattr(torch, "compile", none_there)
    with pytest.raises(
        UserError, match=r"trainer\.compile = true: .*\(InvalidCxxCompiler: none found\)\. It"
    ):
        trainer(tmp_path, "trainer.compile=true")
    monkeypatch.setattr(compilation, "pays", lambda *arguments: True)
    auto = trainer(tmp_path)
    assert not auto.compiled
    assert "torch.compile does not work on this machine: InvalidCxxCompiler: none found" in caplog.text
    auto.train_step(views(auto, 0))


def test_auto_compiles_our_transformer_in_long_runs_on_a_gpu() -> None:
    ours = VisionTransformer(patch_size=8, embed_dim=8, depth=4, num_heads=1, image_size=16)
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert compilation.pays(ours, 10_000, gpu)
    assert not compilation.pays(ours, 9_999, gpu)
    assert not compilation.pays(ours, 1_000_000, cpu)
    assert not compilation.pays(torch.nn.Linear(2, 2), 1_000_000, gpu)


def test_a_restored_trainer_has_the_entire_state_of_the_saved_one(tmp_path: Path) -> None:
    saved, restored = trainer(tmp_path), trainer(tmp_path, "trainer.seed=1")
    _, observed = saved.train_step(views(saved, 0), observe=True)
    known = {name: value.item() for name, value in observed.items() if value.numel() == 1}
    saved.judge.observe(60, known)
    saved.evaluations.best, saved.seconds = {"knn_top1": 50.0}, 3.0
    state = saved.state()
    assert state["judge"]["recent"]
    restored.restore(state)
    found = restored.state()
    tensors = ("student", "teacher", "loss", "optimizer")
    for part in tensors:
        torch.testing.assert_close(found[part], state[part], rtol=0, atol=0)
    for part in state.keys() - {"config", *tensors}:
        assert found[part] == state[part], part


@pytest.mark.parametrize("fused", [False, True])
def test_on_a_gpu_input_is_made_in_a_stream_that_the_step_waits_for(
    fused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    of = trainer(tmp_path)
    if fused:
        of.augment.fuse()
    with gpu_without_values("cuda", monkeypatch) as gpu:
        of.device = torch.device("cuda")
        order = BatchOrder(len(of.splits.train), 8, 0, 0, 1)
        (batch,) = batches(of.crop_batches, order, 0, pin_memory=True)
        found = of.augmented(batch)
    sent = [batch.global_crops.numel(), batch.local_crops.numel()]
    assert [tensor.numel() for tensor in gpu.sent][::2] == sent
    assert len(gpu.sent) == 4  # and the tables of each resolution
    assert gpu.log == ["work in side", "main waits for side", "kept for main"]
    shapes = [tuple(view.shape) for view in found]
    sizes = (2, of.cfg.crops.global_size), (of.cfg.crops.local_number, of.cfg.crops.local_size)
    assert shapes == [(number * 8, 3, size, size) for number, size in sizes]


@pytest.mark.parametrize(
    ("backbone", "optimizer"), [("vit_micro", "adamw"), ("vit_micro", "lars"), ("resnet50", "sgd")]
)
def test_a_step_waits_for_no_value_of_the_device(
    backbone: str, optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"backbone={backbone}", f"optimizer={optimizer}", "optimizer.warmup_epochs=0"]
    cfg = compose(["experiment=debug", f"data.root={tmp_path}", *words])
    of = Trainer(cfg, build(cfg.data), torch.device("meta"))
    monkeypatch.setattr(Trainer, "_autocast", lambda _: nullcontext())  # there is none for this device
    on_device = [view.to("meta") for view in views(of, 0)]
    with gpu_without_values("meta", monkeypatch) as gpu:
        loss, _ = of.train_step(on_device)
    assert loss.shape == ()
    assert gpu.sent == []
