"""Measures of a trained teacher that need no labels, from its outputs for images and crops of them.

Every measure is larger where a run is supposed to be better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from dino_exp.config.targets import build
from dino_exp.data.augment import Augment
from dino_exp.data.crops import MultiCrop
from dino_exp.data.loader import CropBatches
from dino_exp.data.source import ImageSource
from dino_exp.data.subset import evenly_spread
from dino_exp.dino.diagnostics import effective_ranks, entropy
from dino_exp.dino.head import DINOHead
from dino_exp.dino.loss import DINOLoss
from dino_exp.dino.model import NetworkOutput
from dino_exp.eval.neighbors import nearest
from dino_exp.eval.periodic import subject_of
from dino_exp.export.trained import Trained

LAYERS = ("features", "bottleneck", "logits")
MEASURES = (
    *("mutual_information", "stability"),
    *(f"{what}_{layer}" for what in ("copies", "rankme", "lidar") for layer in LAYERS),
)
CPU = torch.device("cpu")
BATCH = 128
"""Images whose crops are in memory at once."""
SEED = 0
"""Of the crops; equal for all runs, so that runs with equal crops and augmentation see the same views."""
DELTA = 1e-4
"""δ of LiDAR."""


@dataclass(frozen=True)
class Outputs:
    """What a teacher gives for N images, and for V augmented crops of each, by layer."""

    images: dict[str, Tensor]
    """(N, D), of the images as evaluations show them."""
    crops: dict[str, Tensor]
    """(N, V, D)."""
    probabilities: Tensor
    """(K,), the mean of the crops' distributions over the prototypes, centered and sharpened."""
    entropy: float
    """Mean entropy of these distributions, in nats."""
    chosen: Tensor
    """int64 (N, V), the prototype with the largest probability."""


@torch.inference_mode()
def outputs_of(run: Trained, source: ImageSource, images: int, crops: int) -> Outputs:
    """Return the outputs for `images` evenly spread images and `crops` global crops of each, an even number.

    Crops and their augmentation are the run's own. Unreadable images are skipped. Logits are given by their
    coordinates in the space that the prototypes span, which has at most `bottleneck_dim` dimensions: inner
    products and singular values stay the same, and K may be large.
    """
    cfg, teacher = run.cfg, run.teacher
    subject = subject_of(cfg, teacher.backbone, CPU)
    multi_crop: MultiCrop = build(cfg.crops, local_number=0)
    mean, std = list(cfg.data.mean), list(cfg.data.std)
    augment: Augment = build(cfg.augment, channels=cfg.data.channels, mean=mean, std=std)
    batches = CropBatches(source, multi_crop, augment, SEED, cfg.data.backend)
    loss: DINOLoss = build(cfg.loss, out_dim=cfg.head.out_dim)
    loss.load_state_dict({"center": run.center, "center_initialized": torch.tensor(True)})
    temperature = loss.teacher_temp_at(run.epochs - 1)
    head = cast(DINOHead, teacher.head)
    prototypes = head.last_layer(torch.eye(cfg.head.bottleneck_dim))  # (bottleneck_dim, K)
    basis = torch.linalg.qr(prototypes.T).R

    def layers(output: NetworkOutput) -> dict[str, Tensor]:
        logits = output.bottleneck @ basis.T
        return {"features": output.features, "bottleneck": output.bottleneck, "logits": logits}

    of_images, of_crops, sums, entropies, chosen = [], [], [], [], []
    for pixels, indices in subject.still_images(source, evenly_spread(len(source), images), batch_size=BATCH):
        of_images.append(layers(teacher([subject.normalized(pixels)])))
        views: list[dict[str, Tensor]] = []
        choices: list[Tensor] = []
        for epoch in range(crops // 2):
            batch = batches[epoch, indices]
            cut, parameters = batch.global_crops.flatten(0, 1), batch.parameters.flatten(0, 1)
            finished = parameters.shape[1] == 0  # except for normalization: data.backend=pil
            output = teacher([augment.normalize(cut) if finished else augment(cut, parameters)])
            probabilities = loss.teacher_probabilities(output.logits, temperature)
            sums.append(probabilities.sum(0))
            entropies.append(entropy(probabilities))
            choices += probabilities.argmax(1).split(len(indices))
            views += [
                {layer: rows[start : start + len(indices)] for layer, rows in layers(output).items()}
                for start in (0, len(indices))
            ]
        of_crops.append({layer: torch.stack([view[layer] for view in views], 1) for layer in LAYERS})
        chosen.append(torch.stack(choices, 1))
    each = torch.cat(entropies)
    return Outputs(
        images={layer: torch.cat([part[layer] for part in of_images]) for layer in LAYERS},
        crops={layer: torch.cat([part[layer] for part in of_crops]) for layer in LAYERS},
        probabilities=torch.stack(sums).sum(0) / len(each),
        entropy=each.mean().item(),
        chosen=torch.cat(chosen),
    )


def measure(outputs: Outputs) -> dict[str, float | None]:
    """Return the measures by name; all None where outputs are not finite, as after a divergence."""
    every = [*outputs.images.values(), *outputs.crops.values()]
    if not all(bool(rows.isfinite().all()) for rows in every):
        return dict.fromkeys(MEASURES)
    found: dict[str, float | None] = {
        "mutual_information": entropy(outputs.probabilities).item() - outputs.entropy,
        "stability": stability(outputs.chosen),
    }
    for layer in LAYERS:
        images, crops = outputs.images[layer], outputs.crops[layer]
        found[f"copies_{layer}"] = copies(images, crops)
        found[f"rankme_{layer}"] = effective_ranks(images, most=len(images))[0].item()
        found[f"lidar_{layer}"] = lidar(crops)
    return {name: found[name] for name in MEASURES}


def stability(chosen: Tensor) -> float:
    """Return how well the crops of an image agree on a prototype: 1 always, 0 as by chance.

    Fleiss' kappa (Fleiss 1971) of int64 (N, V), the prototype that each of V crops chooses: the share of
    equal pairs among an image's crops, and that of pairs of any images. Plain agreement would be perfect in a
    collapse, where all crops choose one prototype; that is 0 here.
    """
    views = chosen.shape[1]
    equal = (chosen[:, :, None] == chosen[:, None, :]).double().sum((1, 2)) - views
    agreement = (equal / (views * (views - 1))).mean()
    by_chance = (torch.bincount(chosen.flatten()).double() / chosen.numel()).square().sum()
    return ((agreement - by_chance) / (1 - by_chance)).item() if by_chance < 1 else 0.0


def copies(images: Tensor, crops: Tensor) -> float:
    """Return the share of crops (N, V, D) whose nearest of all images (N, D) is their own, in percent.

    Nearest by the cosine, as k-NN.
    """
    _, found = nearest(images, crops.flatten(0, 1), 1)
    own = torch.arange(len(images)).repeat_interleave(crops.shape[1])
    return 100 * (found[:, 0] == own).double().mean().item()


def lidar(crops: Tensor, delta: float = DELTA) -> float:
    """Return LiDAR (Thilak et al. 2024) of V crops each of N images, (N, V, D).

    It is exp of the entropy of the normalized eigenvalues of Σ_w^(−1/2) Σ_b Σ_w^(−1/2), where every image is
    a class: Σ_b is the covariance of the images' means, and Σ_w that of crops around their image's mean, plus
    δ·I. 1 if all means are equal.
    """
    crops = crops.double()
    means = crops.mean(1)
    between, within = means - means.mean(0), (crops - means[:, None]).flatten(0, 1)
    sigma_b = between.T @ between / len(between)
    sigma_w = within.T @ within / len(within)
    values, vectors = torch.linalg.eigh(sigma_w + delta * torch.eye(len(sigma_w), dtype=sigma_w.dtype))
    whitening = vectors * values.rsqrt()  # differs from Σ_w^(−1/2) by a rotation alone
    spectrum = torch.linalg.eigvalsh(whitening.T @ sigma_b @ whitening).clamp_min(0)
    return entropy(spectrum / spectrum.sum().clamp_min(1e-12)).exp().item()
