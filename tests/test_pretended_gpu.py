"""Commands of genimg with CUDA tensors, computed on the CPU: faults that need no GPU to be found (tests/pretended_gpu).

With -s, the number of CUDA operations of each step is printed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from command_table import compare
from pretended_gpu import build

REASON = build.reason_to_skip()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

STEPS, MIDDLE = 3, 2
COMMON = [
    "device=cuda", "performance.compile=false", "data.image_size=16", "trainer.preview_images=4", "trainer.duration=3 steps",
    "trainer.checkpoint_interval=2 steps", "trainer.log_interval=3 steps",
]  # fmt: skip
SHAPES = ["data=shapes", "data.num_images=32", "trainer.batch_size=4"]
PLAIN = [*SHAPES, "evaluation=none"]
COUNTS = ["evaluation.num_images=10", "evaluation.interval=2 steps"]
LAZY = ["penalty=[r1,path_length]", "penalty.r1.interval=2", "penalty.path_length.interval=2"]
LOADED = ["data.storage=host", "augment=strong", "trainer.max_grad_norm=1", "schedule=cosine"]
AVERAGED = ["ema=exponential", "trainer.accumulation=2"]
SMALL_DENOISER = [*tiny.DIFFUSION, "sampler.steps=2"]

GROUPS = {
    "GANs": {
        "dcgan": [
            "precision=bf16", "model=dcgan_small", *tiny.SIZES["dcgan_small"], "discriminator_augment=ada", *SHAPES, *COUNTS,
            "evaluation=shapes", "evaluation.num_real=10",
        ],
        "sngan": ["precision=fp32", "model=sngan_cnn", *tiny.SIZES["sngan_cnn"], "conditioning=projection", *LOADED, *PLAIN],
        "stylegan2": [
            "precision=fp32", "model=stylegan2_small", *tiny.SIZES["stylegan2_small"], "conditioning=text", *LAZY, *PLAIN,
        ],
    },
    "autoencoders and translators": {
        "vae": ["precision=fp32", "model=vae_small", *tiny.AUTOENCODERS["vae_small"], "conditioning=concat", *PLAIN],
        "vq_vae": ["precision=fp32", "model=vq_vae_small", *tiny.AUTOENCODERS["vq_vae_small"], *PLAIN],
        "kl_autoencoder": [
            "precision=fp32", "model=kl_autoencoder_small", *tiny.LATENT_AUTOENCODERS["kl_autoencoder_small"], *PLAIN,
        ],
        "cyclegan": ["precision=fp32", "model=cyclegan", *tiny.TRANSLATORS["cyclegan"], "trainer.batch_size=2", *COUNTS],
        "restoration": ["precision=bf16", "model=restoration", *tiny.TRANSLATORS["restoration"], *AVERAGED, *PLAIN],
    },
    "diffusion and flow matching": {
        "flow": ["precision=fp32", "model=flow_small", *SMALL_DENOISER, *PLAIN],
        "diffusion": ["precision=bf16", "model=diffusion_small", *SMALL_DENOISER, "conditioning=label", *PLAIN],
        "edm2": ["precision=bf16", "model=edm2", *SMALL_DENOISER, *PLAIN],
        "ect": ["precision=fp32", "model=ect_small", *tiny.DIFFUSION, *PLAIN],
    },
}  # fmt: skip
"""Trainings of each family, by group; each group is one process."""

USES = {
    "dcgan": [["sample", "num_images=2"], ["eval", "num_images=10", "num_real=10"], ["export", "output=dcgan.pt2"]],
    "stylegan2": [["sample", "num_images=2"]],
    "cyclegan": [["eval"], ["translate", "input=unpaired/trainA", "output=translated"]],
    "restoration": [["translate", "input=unpaired/trainA", "output=restored"]],
    "diffusion": [["sample", "num_images=2"]],
}
"""Commands that use a trained model, by training."""


@pytest.mark.parametrize("checks", ["checks", "transfers"])
def test_the_pretended_gpu_and_the_copies_to_and_from_it_are_right(checks: str, tmp_path: Path) -> None:
    failures = json.loads(*build.run(checks, tmp_path))
    assert not failures, "\n".join(failures.values())


@pytest.mark.parametrize("group", GROUPS)
def test_models_use_the_gpu_alone_without_waiting_for_it_in_a_step_and_resume_bit_for_bit(group: str, tmp_path: Path) -> None:
    trainings = GROUPS[group]
    tiny.unpaired_folders(tmp_path / "unpaired")
    commands = []
    for name, arguments in trainings.items():
        commands.append(["train", *COMMON, "performance.graph=false", *arguments, f"run_dir={name}"])
        commands.append(["train", f"resume={name}/checkpoints/step-{MIDDLE:08d}.pt", f"run_dir={name}_resumed"])
        commands += [[use, f"ckpt={name}", "device=cuda", *more] for use, *more in USES.get(name, [])]
    for record in records_of(commands, tmp_path):
        check(record)
        if record["command"][0] == "train":
            assert len(record["operations"]) in (STEPS, STEPS - MIDDLE), record["command"]
    for name in trainings:
        whole, resumed = (final_state(tmp_path / run) for run in (name, f"{name}_resumed"))
        differ = [path for path, same in compare(whole, resumed, name) if not same]
        assert not differ, differ[:5]


GRAPH_STEPS = 6  # of two kinds in turn: the first runs normally, the second is captured, the third is a replay
GRAPHS = {
    "dcgan": ["model=dcgan_small", *tiny.SIZES["dcgan_small"], "discriminator_augment=ada", "schedule=cosine",
              "ema=[exponential,power]", "trainer.max_grad_norm=1"],
    "sngan": ["model=sngan", *tiny.SIZES["sngan"], "model.generator_interval=2", "penalty=[lecam]",
              "penalty.lecam.start=12images"],
    "stylegan2": ["model=stylegan2_small", *tiny.SIZES["stylegan2_small"], *LAZY],
    "vae": ["model=vae_small", *tiny.AUTOENCODERS["vae_small"], "loss=beta_vae", "loss.warm_up=16images", "optimizer=rmsprop",
            "data.storage=workers", "data.num_workers=2"],
    "vq_vae": ["model=vq_vae_small", *tiny.AUTOENCODERS["vq_vae_small"], "model.prior_from=8images"],
    "cyclegan": [*tiny.TRANSLATORS["cyclegan"], "model=cyclegan", "trainer.batch_size=2", "evaluation=none"],
    "flow": ["precision=bf16", "model=flow_small", *SMALL_DENOISER, "data.storage=host"],
    "ect": ["model=ect_small", *tiny.DIFFUSION, "model.network.dropout=0.1", "trainer.accumulation=2"],
    "dcgan_parts": ["model=dcgan_small", *tiny.SIZES["dcgan_small"], "discriminator_augment=diffaugment",
                    "model.fresh_latents=true", "trainer.accumulation=2"],
    "stylegan2_parts": ["model=stylegan2_small", *tiny.SIZES["stylegan2_small"], *LAZY, "trainer.accumulation=2",
                        "model.generator_interval=2"],
}  # fmt: skip


REFUSED = {
    "waiting": [
        "model=dcgan_small",
        *tiny.SIZES["dcgan_small"],
        "loss.generator._target_=pretended_gpu.refused.waiting_loss",
        "allow=[pretended_gpu]",
    ],
}
RANKS = {
    "batch_norm": ["model=dcgan_small", *tiny.SIZES["dcgan_small"], "discriminator_augment=ada", "ema=exponential"],
    "styles": ["model=stylegan2_small", *tiny.SIZES["stylegan2_small"], *LAZY, "trainer.max_grad_norm=1"],
    "codes": ["model=vq_vae_small", *tiny.AUTOENCODERS["vq_vae_small"], "model.prior_from=8images", "trainer.accumulation=2"],
}


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_steps_that_cannot_be_captured_run_eagerly_and_resume_bit_for_bit(num_ranks: int, tmp_path: Path) -> None:
    commands = []
    for name, arguments in REFUSED.items():
        common = [
            *COMMON,
            "precision=fp32",
            *PLAIN,
            *arguments,
            f"trainer.duration={GRAPH_STEPS} steps",
            "performance.graph=true",
        ]
        commands.append(["train-eagerly", *common, f"run_dir={name}_eager"])
        commands.append(["train", *common, f"run_dir={name}"])
        resume = ["allow=[pretended_gpu]", f"resume={name}/checkpoints/step-{4:08d}.pt", f"run_dir={name}_resumed"]
        commands.append(["train", *resume])
    for record in records_of(commands, tmp_path, num_ranks):
        assert not record["failure"], record["failure"]
        assert record["graphs"] == 0, record["command"]
        assert record["command"][0] == "train-eagerly" or record["not_captured"], record["command"]
    for name in REFUSED:
        ours = final_state(tmp_path / name, GRAPH_STEPS)
        for other in ("eager", "resumed"):
            theirs = final_state(tmp_path / f"{name}_{other}", GRAPH_STEPS)
            differ = [path for path, same in compare(ours, theirs, name) if not same]
            assert not differ, (other, differ[:5])


@pytest.mark.parametrize(("trainings", "num_ranks"), [(GRAPHS, 1), (RANKS, 2)], ids=["one process", "two processes"])
def test_steps_as_cuda_graphs_equal_eager_steps_and_resume_bit_for_bit(
    trainings: dict[str, list[str]], num_ranks: int, tmp_path: Path
) -> None:
    tiny.unpaired_folders(tmp_path / "unpaired")
    commands = []
    for name, arguments in trainings.items():
        own = arguments if "data=unpaired" in arguments else [*PLAIN, *arguments]
        common = [*COMMON, "precision=fp32", *own, "performance.graph=true", f"trainer.duration={GRAPH_STEPS} steps"]
        commands.append(["train-eagerly", *common, f"run_dir={name}_eager"])
        commands.append(["train", *common, f"run_dir={name}"])
        commands.append(["train", f"resume={name}/checkpoints/step-{4:08d}.pt", f"run_dir={name}_resumed"])
    for record in records_of(commands, tmp_path, num_ranks):
        check(record)
        assert not record["not_captured"], record["command"]
        if record["command"][0] == "train-eagerly":
            assert record["graphs"] == 0, record["command"]
        elif len(record["operations"]) == GRAPH_STEPS:
            assert record["graphs"] > 0, record["command"]
            assert record["operations"][-1] < 30, "the last step is a replay"
    for name in trainings:
        graph = final_state(tmp_path / name, GRAPH_STEPS)
        for other in ("eager", "resumed"):
            differ = [
                path for path, same in compare(graph, final_state(tmp_path / f"{name}_{other}", GRAPH_STEPS), name) if not same
            ]
            assert not differ, (other, differ[:5])


def records_of(commands: list[list[str]], folder: Path, num_ranks: int = 1) -> list[dict[str, Any]]:
    """Run commands and return the records of all processes."""
    records = []
    for printed in build.run("walk", folder, json.dumps(commands), num_ranks):
        lines = printed.splitlines()
        assert len(lines) == len(commands), lines
        records += [json.loads(line) for line in lines]
    return records


def check(record: dict[str, Any]) -> None:
    """Assert that a command has done nothing that a GPU would object to or would be slowed down by."""
    command = " ".join(record["command"])
    print(f"{record['seconds']:5.1f} s, operations by step {record['operations']}: {command}")
    assert not record["failure"], f"{command}\n{record['failure']}"
    assert record["launches"] == 0, f"{command}: a thread has used the GPU outside of the dispatch mode"
    assert not record["on_cpu"], command
    waits = {phase: record["waits"].get(phase, {}) for phase in ("later steps", "between steps")}
    assert not any(waits.values()), f"{command}: {waits}"
    copies = [wait for wait in record["waits"].get("save", {}) if " at training/host_copies.py" in wait]
    assert not copies, f"{command}: {copies}"


def final_state(run: Path, steps: int = STEPS) -> dict[str, Any]:
    """Return what a run's last checkpoint holds of the training."""
    state = torch.load(run / f"checkpoints/step-{steps:08d}.pt", weights_only=True)
    return {key: state[key] for key in ("method", "averages", "optimizers", "means")}
