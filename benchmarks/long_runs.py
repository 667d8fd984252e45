"""Configurations of `benchmarks.collapse` that are meant to learn, and to take half an hour and more each.

That is on a core with AVX-512 and bfloat16 instructions, by the speed of similar runs; docs/collapse.md says
which were run. Each is another way to be long: large networks, batches and K, slow teachers, slow or absent
centers, values close to where training ends.
"""

from __future__ import annotations

PHOTOGRAPHS = "experiment=cifar10_folder_resnet data.root={train} trainer.precision=bf16 eval.every_epochs=10"
"""CIFAR-10."""
CLOTHES = (
    "experiment=cifar10_folder_resnet data=fashion_mnist crops.global_size=28 augment.gray=0 "
    "trainer.precision=bf16 eval.every_epochs=2 trainer.epochs=32"
)
"""Fashion-MNIST."""
VIT = "experiment=cifar10_folder data.root={train}"
LONG_RUNS = (
    f"{CLOTHES} crops.global_scale=[0.5,1] loss.teacher_temp=0.02",
    f"{PHOTOGRAPHS} trainer.epochs=60 trainer.batch_size=256 head.out_dim=65536",
    f"{PHOTOGRAPHS} trainer.epochs=160",
    f"{PHOTOGRAPHS} trainer.epochs=160 loss=dino_warmup",
    f"{PHOTOGRAPHS} trainer.epochs=160 ema=paper",
    f"{PHOTOGRAPHS} trainer.epochs=160 trainer.batch_size=256 trainer.reference_batch=64",
    f"{PHOTOGRAPHS} trainer.epochs=150 head.out_dim=4096 loss.center_momentum=0.99",
    f"{PHOTOGRAPHS} trainer.epochs=150 loss.centering=sinkhorn",
    f"{PHOTOGRAPHS} trainer.epochs=150 loss.center_momentum=0 loss.teacher_temp=0.02",
    f"{PHOTOGRAPHS} trainer.epochs=45 backbone.width=64",
    f"{PHOTOGRAPHS} trainer.epochs=100 crops.local_number=4 crops.local_scale=[0.1,0.4]",
    f"{PHOTOGRAPHS} trainer.epochs=40 optimizer=adamw head=dino head.out_dim=16384",
    f"{PHOTOGRAPHS} trainer.epochs=5 trainer.batch_size=32 backbone=resnet18_cifar eval.every_epochs=1",
    f"{CLOTHES} head.out_dim=4096 ema.momentum=0.999",
    f"{CLOTHES} head.out_dim=64 loss.teacher_temp=0.07",
    f"{VIT} trainer.epochs=30 backbone.depth=6 head.out_dim=4096",
    f"{VIT} trainer.epochs=8 backbone=vit_tiny backbone.patch_size=4 optimizer=adamw_small",
    "experiment=fashion_mnist trainer.epochs=14",
    "experiment=shapes trainer.epochs=60 loss.teacher_temp=0.04 eval.every_epochs=5",
    "experiment=demo trainer.epochs=120 head.out_dim=1024 trainer.batch_size=64 eval.every_epochs=10",
)
