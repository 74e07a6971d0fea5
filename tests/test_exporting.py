"""What is taken out of every model, as a program and as weights, against what the model itself makes; no training."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from errors import raises
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from sampling import sampled
from torch import Tensor, nn

from genimg.api.data import build_dataset, build_task
from genimg.config import instantiate
from genimg.data.captions import encode
from genimg.data.facts import DataFacts
from genimg.errors import CheckpointError, ConfigError, UserError
from genimg.exporting.checks import TOLERANCE, largest_difference, trials
from genimg.exporting.formats import open_onnx, traced, write_onnx
from genimg.exporting.networks import exportable
from genimg.exporting.parts import Choices, ExportedNetwork, SizeConstraints, prepared_for_export
from genimg.methods.base import Method
from genimg.methods.conditional import ConditionalMethod
from genimg.methods.export_spec import ExportSpec, Port, integer_port
from genimg.methods.options import StyleOptions
from genimg.methods.vq_vae import VQVAE
from genimg.networks import unet
from genimg.utils.paths import config_dir

MODELS = tiny.SIZES | tiny.AUTOENCODERS | tiny.TRANSLATORS | tiny.DENOISERS | tiny.RANDOM_TRANSLATORS
FIELD = ["model.translator.crf.window=3", "model.translator.crf.num_iterations=2"]  # whose trace takes long
TINY = ["data.image_size=16", "data.num_images=4", "run_dir=unused"]
BUILDER = instantiate.Builder(epoch_size=100, batch_size=4)
VARIANTS = {
    "labels": ["model=dcgan_small", *tiny.SIZES["dcgan_small"], "conditioning=conditional_batchnorm"],
    "shared": ["model=biggan", *tiny.SIZES["biggan"], "conditioning=shared_embedding"],
    "styles_of_classes": ["model=stylegan2_small", *tiny.SIZES["stylegan2_small"], "conditioning=projection"],
    "captions": ["model=dcgan_small", *tiny.SIZES["dcgan_small"], "conditioning=text", "data.num_objects=2"],
    "denoiser_of_classes": ["model=diffusion_small", *tiny.DIFFUSION, "conditioning=label"],
    "one_step_of_classes": ["model=meanflow_small", *tiny.DIFFUSION, "conditioning=label"],
    "spectral": ["model=dcgan_small", *tiny.SIZES["dcgan_small"], "model.generator.spectral_norm=true"],
    "spectral_decoder": ["model=rae", *tiny.AUTOENCODERS["rae"], "loss=rae_sn"],
    "vae_labels": ["model=vae_hierarchical", *tiny.AUTOENCODERS["vae_hierarchical"], "conditioning=concat"],
    "logistics": ["model=vae_small", *tiny.AUTOENCODERS["vae_small"], "likelihood=logistic_mixture"],
    "inpaint_partial": ["model=restoration_gated", "model.translator.width=4", "task=inpaint",
                        "model.translator.convolution=partial"],
    "enlarge": ["model=restoration", "task=super_resolution", "model.translator.width=4", "model.translator.num_blocks=1"],
    "colours": ["model=restoration", "task=colorize", "task.space=lab", "model.residual=false", "model.translator.width=4",
                "model.translator.num_blocks=1"],
}  # fmt: skip


def settings_of(model: str, root: Path) -> list[str]:
    """What makes the model tiny, with the data that it needs."""
    settings = [f"model={model}", *MODELS[model], *(FIELD if model == "restoration_crf" else [])]
    if "data=unpaired" in settings:
        if not root.joinpath("trainA").exists():
            tiny.unpaired_folders(root)
        return [*(each for each in settings if not each.startswith("data.root")), f"data.root={root}", *TINY[::2]]
    return [*settings, *TINY]


def made(*settings: str) -> tuple[Method, DataFacts]:
    """A method that was not trained, but whose every weight is a random number, and facts about its data."""
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        composed = compose("train", overrides=list(settings))
    config: dict[str, Any] = OmegaConf.to_container(composed, resolve=True)  # type: ignore[assignment]
    torch.manual_seed(0)
    source = build_dataset(config, BUILDER)
    facts = DataFacts.of(source, build_task(config, source, BUILDER))
    method = tiny.method_of(config, source, BUILDER)
    numbers = torch.Generator().manual_seed(1)
    for tensor in method.parameters():
        tensor.data += 0.1 * torch.randn(tensor.shape, generator=numbers)
    if isinstance(method, VQVAE):
        method.quantizer.codebook += torch.randn(method.quantizer.codebook.shape, generator=numbers)
    for layer in method.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.running_mean.normal_(0.0, 0.3, generator=numbers)  # type: ignore[union-attr]
            layer.running_var.uniform_(0.5, 2.0, generator=numbers)  # type: ignore[union-attr]
    if isinstance(method, ConditionalMethod) and method.condition_key == "caption":
        texts = ["a small red circle", "a large ring above a cross, and more", ""]
        method.conditions.copy_(method._fit(encode([texts[i % 3] for i in range(len(method.conditions))], 64)))
    return method.to(memory_format=torch.channels_last).eval(), facts  # type: ignore[call-overload]


def part_of(*settings: str, **choices: Any) -> ExportedNetwork:
    method, facts = made(*settings)
    return exportable(method, Choices(**choices), facts)


def assert_exports(part: ExportedNetwork) -> ExportedNetwork:
    """As a program, which makes the checkpoint's images; without a file, which test_export_command reads."""
    program, part = traced(part)
    run = program.module()
    for number, (count, height, width) in enumerate(trials(part)):
        inputs = part.draw(count, number, height, width)
        expected, found = part.reference(*inputs), run(*inputs)
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= TOLERANCE
        assert part.output.meaning != "in [-1, 1]" or found.abs().max() <= 1.0
        if count > 1:  # what it makes depends on what it is given
            assert (found[0] - found[1]).abs().max() > 100 * TOLERANCE
    return part


@pytest.mark.parametrize("model", sampled(sorted(MODELS), lambda model: [model.partition("_")[0]]))
def test_every_model_becomes_a_program_for_any_batch_and_size(model: str, tmp_path: Path) -> None:
    part = assert_exports(part_of(*settings_of(model, tmp_path)))
    assert part.sides is None or not part.sides.fixed


@pytest.mark.parametrize("variant", VARIANTS)
def test_conditions_tasks_and_parametrizations_are_part_of_the_program(variant: str) -> None:
    part = assert_exports(part_of(*VARIANTS[variant], *TINY))
    assert part.sides is None or not part.sides.fixed


ONNX = {
    "captions": "gan", "sngan": "gan", "rae": "autoencoder", "vq_vae": "autoencoder", "restoration_gated": "translator",
    "enlarge": "translator",
}  # fmt: skip


@pytest.mark.parametrize("name", sampled(ONNX, lambda name: [ONNX[name]]))
def test_onnx_files_make_the_same(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the packages of genimg[export] are not installed")
    pytest.importorskip("onnxscript", reason="the packages of genimg[export] are not installed")
    settings = [*VARIANTS[name], *TINY] if name in VARIANTS else settings_of(name, tmp_path)
    program, part = traced(part_of(*settings))
    write_onnx(program, part, {"description": "a test"}, tmp_path / "made.onnx")
    run = open_onnx(tmp_path / "made.onnx")
    for number, (count, height, width) in enumerate(trials(part)):
        inputs = part.draw(count, number, height, width)
        assert (run(*inputs) - part.reference(*inputs)).abs().max() <= TOLERANCE


# What is chosen


def test_psi_pulls_towards_the_average_of_a_stylegan2() -> None:
    settings = ["model=stylegan2_small", *tiny.SIZES["stylegan2_small"], *TINY]
    method, facts = made(*settings)
    method.generator.style_average.normal_(0.0, 1.0, generator=torch.Generator().manual_seed(2))  # type: ignore[union-attr, operator]
    latent = method.draw(range(3), 0)["latent"]
    for psi in (0.0, 0.7):
        part = exportable(method, Choices(truncation=psi), facts)
        expected = method.sample({"latent": latent}, StyleOptions(truncation=psi)).clamp(-1, 1)
        assert (traced(part)[0].module()(latent) - expected).abs().max() <= TOLERANCE
    assert (expected - method.sample({"latent": latent}).clamp(-1, 1)).abs().max() > 100 * TOLERANCE


def test_each_direction_of_a_cyclegan_is_a_part_of_its_own(tmp_path: Path) -> None:
    method, facts = made(*settings_of("cyclegan", tmp_path))
    image = torch.rand(2, 3, 16, 20) * 2 - 1
    for direction, name in ((None, "translator-a2b"), ("b2a", "translator-b2a")):
        part = exportable(method, Choices(direction=direction), facts)
        assert part.name == name
        assert (part.network(image) - method.translate(image, direction or "a2b")).abs().max() <= TOLERANCE


def test_batch_statistics_of_training_mode_are_those_of_each_image(tmp_path: Path) -> None:
    settings = [
        *settings_of("pix2pix", tmp_path),
        "model.sampled_mode=train",
        "model.translator.dropout=0",
        "data.image_size=32",
    ]
    part = assert_exports(part_of(*settings))
    averaged = part_of(*settings, model_mode="eval")
    inputs = part.draw(2, 0, 32, 32)
    assert (part.reference(*inputs) - averaged.reference(*inputs)).abs().max() > 100 * TOLERANCE


def test_noise_of_a_hierarchy_and_the_choice_of_a_gaussian_are_inputs() -> None:
    hierarchy = part_of("model=vae_hierarchical", *tiny.AUTOENCODERS["vae_hierarchical"], *TINY)
    assert [(port.name, port.shape) for port in hierarchy.inputs] == [("latent", ("batch", 3)), ("noise", ("batch", 4))]
    method, facts = made("model=rae", *tiny.AUTOENCODERS["rae"], *TINY)
    density = method.density
    density.weights.copy_(torch.tensor([0.3, 0.7]))  # type: ignore[operator, union-attr]
    density.means.normal_(0.0, 3.0)  # type: ignore[operator, union-attr]
    density.factors.copy_(torch.randn(2, 4, 4).tril())  # type: ignore[operator, union-attr]
    part = exportable(method, Choices(), facts)
    assert [port.name for port in part.inputs] == ["latent", "uniform"]
    normal, uniform = torch.randn(4, 4), torch.tensor([0.0, 0.29, 0.31, 0.99])
    chosen = torch.tensor([0, 0, 1, 1])
    placed = density.means[chosen] + torch.einsum("nij,nj->ni", density.factors[chosen], normal)  # type: ignore[index, union-attr]
    assert (part.network(normal, uniform) - method.sample({"latent": placed}).clamp(-1, 1)).abs().max() <= TOLERANCE


@pytest.mark.parametrize(
    ("model", "choices", "message"),
    [
        ("dcgan_small", {"truncation": 0.5}, "truncation=0.5"),
        ("vae_small", {"truncation": 0.5}, "truncation=0.5"),
        ("vq_vae", {"direction": "a2b"}, "direction=a2b"),
        ("wae", {"model_mode": "eval"}, "model_mode=eval"),
        ("restoration", {"truncation": 1.0}, "truncation=1.0"),
        ("restoration", {"direction": "a2b"}, "direction=a2b"),
        ("cyclegan", {"direction": "a2c"}, "direction=a2c"),
        ("restoration", {"model_mode": "train"}, "model_mode=train"),
        ("pix2pix", {"model_mode": "train"}, "dropout"),
    ],
)
def test_a_choice_without_effect_is_refused(model: str, choices: dict[str, Any], message: str, tmp_path: Path) -> None:
    with raises(ConfigError, word=message):
        part_of(*settings_of(model, tmp_path), **choices)


class Trains(Method):
    """Has no capability."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Conv2d(1, 1, 1)

    def parameter_groups(self) -> Any: ...
    def step(self, batch: Any, progress: Any, update: Any) -> Any: ...
    def check(self, batch: Any) -> None: ...
    def preview(self, batch: Any, drawn: Any) -> Any: ...


class Triples(Trains):
    """States what it exports."""

    includes: bool = False

    def export_spec(self, truncation: float | None) -> ExportSpec:
        return ExportSpec(
            name="network",
            parts={"step": torch.tensor([0.1])},
            inputs=(
                Port("image", torch.float32, ("batch", 1, 4, 4), "in [0, 1)", torch.rand),
                integer_port("shift", "row", 3),
            ),
            forward=lambda parts, batch: batch["image"] * 3.0 - parts.step * batch["shift"][:, None, None, None],
            reference=lambda batch: batch["image"] * 3.0 - 0.1 * batch["shift"].view(-1, 1, 1, 1),
            truncation=truncation if self.includes else None,
            remarks=("tripled",),
        )


FACTS = DataFacts(image_size=4, channels=1, num_classes=0)


def test_a_method_without_capabilities_is_refused() -> None:
    with raises(CheckpointError, "ckpt", word="export_spec"):
        exportable(Trains(), Choices(), FACTS)


def test_any_method_may_state_what_it_exports() -> None:
    part = assert_exports(exportable(Triples(), Choices(), FACTS))
    assert (part.name, part.remarks, part.output.shape) == ("network", ("tripled",), ("batch", 1, 4, 4))
    assert [port.describe() for port in part.inputs] == [
        "image: float32 [batch, 1, 4, 4], in [0, 1)",
        "shift: int64 [batch], row numbers from 0 to 2",
    ]
    assert all(set(part.draw(50, seed, 0, 0)[1].tolist()) == {0, 1, 2} for seed in range(3))


def test_a_truncation_that_a_statement_does_not_include_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with raises(ConfigError, word="truncation=0.5"):
        exportable(Triples(), Choices(truncation=0.5), FACTS)
    monkeypatch.setattr(Triples, "includes", True)
    exportable(Triples(), Choices(truncation=0.5), FACTS)
    own = Triples.export_spec
    monkeypatch.setattr(Triples, "export_spec", lambda self, truncation: replace(own(self, truncation), truncation=0.7))
    with raises(ConfigError, word="truncation=0.5"):
        exportable(Triples(), Choices(truncation=0.5), FACTS)


def test_an_input_without_values_is_named() -> None:
    spec = Triples().export_spec(None)
    unknown = replace(spec.inputs[0], name="unknown", random=None)
    method = Triples()
    method.export_spec = lambda truncation: replace(spec, inputs=(unknown,))  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="unknown"):
        exportable(method, Choices(), FACTS)


def documented(page: str, containing: str) -> dict[str, Any]:
    """What the block of code of a page defines."""
    text = (Path(__file__).resolve().parent.parent / "docs" / page).read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if containing in block]
    found: dict[str, Any] = {"__name__": "documented"}
    exec(compile(code, page, "exec", dont_inherit=True), found)
    return found


def test_the_example_of_the_documentation_exports_another_network_than_sample() -> None:
    family = documented("extending.md", "class FlowMatching")
    added = documented("exporting.md", "def export_spec")
    network = partial(unet.Translator, image_size=16, width=4, num_downs=2, normalisation="batch", upsampling="resize",
                      dropout=0.0, num_dropout=0, initialisation="default", spectral_norm=False)  # fmt: skip
    flow = type("Own", (family["FlowMatching"],), {"export_spec": added["FlowMatching"].export_spec})
    method = flow(network=network, loss=None, image_size=16, channels=3).eval()
    facts = DataFacts(image_size=16, channels=3, num_classes=0)
    part = assert_exports(exportable(method, Choices(), facts))
    assert [(port.name, port.shape) for port in part.inputs] == [("noisy", ("batch", 4, 16, 16))]


# Sizes


class Enlarging(nn.Module):
    """Takes images of 16x16 pixels alone, or of any size from ``least`` on."""

    def __init__(self, least: int | None) -> None:
        super().__init__()
        self.least = least

    def forward(self, *inputs: Tensor) -> Tensor:
        (image,) = inputs
        if self.least is None:
            return (image.flatten(1) @ torch.eye(256)).view(-1, 1, 16, 16)
        return image * 0.5 if image.shape[2] >= self.least and image.shape[3] >= self.least else image


def imagined(network: nn.Module, reference: Any) -> ExportedNetwork:
    ports = [Port(name, torch.float32, ("batch", 1, "height", "width"), "in [-1, 1]") for name in ("image", "translated")]

    def draw(count: int, seed: int, height: int, width: int) -> tuple[Tensor]:
        return (torch.rand(count, 1, height, width, generator=torch.Generator().manual_seed(seed)),)

    return ExportedNetwork("translator", network, (ports[0],), ports[1], draw, reference, SizeConstraints(4, 4, (16, 16)))


def test_a_network_of_one_size_is_exported_for_that_size() -> None:
    _, part = traced(imagined(Enlarging(None), lambda image: image))
    assert part.sides is not None
    assert part.sides.fixed
    assert [port.shape for port in (*part.inputs, part.output)] == [("batch", 1, 16, 16)] * 2
    assert {size[1:] for size in trials(part)} == {(16, 16)}
    assert part.describe_sides() == ""
    enlarged = Port("x", torch.float32, ("batch", "2*height", "width"), "")
    assert enlarged.with_sides({"height": 3, "width": 5}).shape == ("batch", 6, 5)


def test_a_network_that_treats_small_images_otherwise_is_exported_for_larger_ones() -> None:
    program, part = traced(imagined(Enlarging(7), lambda image: image * 0.5))
    assert part.describe_sides() == "height and width multiples of 4, 8 or more"
    assert largest_difference(part, program.module()) == 0.0


# The check


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda image: image + 2e-4, "0.0002"),
        (lambda image: image * float("nan"), "nan"),
        (lambda image: image if len(image) < 8 else image.flip(0), "batch of 8"),
    ],
)
def test_other_images_are_refused(run: Any, message: str) -> None:
    part = imagined(nn.Identity(), lambda image: image)
    assert largest_difference(part, lambda image: image + 5e-5) == pytest.approx(5e-5, rel=1e-2)
    with raises(UserError, word=message):
        largest_difference(part, run)


def test_images_of_another_shape_are_a_bug() -> None:
    with pytest.raises(AssertionError):
        largest_difference(imagined(nn.Identity(), lambda image: image), lambda image: image[:, :, 1:])


def test_a_diverged_checkpoint_is_named_as_such() -> None:
    part = imagined(nn.Identity(), lambda image: image * float("nan"))
    with raises(CheckpointError, word="diverged"):
        largest_difference(part, lambda image: image)


# Copies


def test_a_settled_copy_has_plain_weights_and_leaves_the_original_as_it_was() -> None:
    network = tiny.generator(spectral_norm=True).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    latent = torch.randn(2, 5)
    copied = prepared_for_export(network)
    assert not any("parametrizations" in name for name in copied.state_dict())
    assert all(value.is_contiguous() for value in copied.state_dict().values())
    assert not copied.training
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert (copied(latent, torch.empty(2, 0)) - network.eval()(latent, torch.empty(2, 0))).abs().max() < 1e-6


def test_a_tracer_that_refuses_is_explained() -> None:
    class Stubborn(nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            return inputs[0] * (2.0 if inputs[0].sum() > 0 else 1.0)

    part = replace(imagined(Stubborn(), None), sides=None)
    part = replace(part, draw=lambda count, seed, height, width: (torch.zeros(count, 1, 4, 4),))
    with raises(ConfigError, "format", word="torch.export"):
        traced(part)
