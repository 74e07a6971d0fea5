"""Guidance of diffusion models by a negative condition and by a weaker model, against direct computations."""

import contextlib
from dataclasses import replace

import pytest
import tiny
import torch
from errors import raises
from test_diffusion import Denoiser, build

from genimg.data.captions import encode
from genimg.diffusion.paths import StraightLine, VarianceExploding, VariancePreserving
from genimg.errors import ConfigError
from genimg.inference.conditions import require_other_conditions
from genimg.methods.diffusion import Diffusion
from genimg.methods.diffusion_options import DiffusionOptions
from genimg.methods.options import OtherModel
from genimg.methods.sampling_options import Lookup, described, looked_up, sampling_options
from genimg.networks.text import TextEncoder
from genimg.types import Batch

ONE = DiffusionOptions(sampler="euler", steps=1)  # so a sample is the estimate itself
BARE = {"sampler": ONE, "condition_dropout": 0.0}  # a null condition is not needed


def other(method: object, name: str = "weak.pt") -> OtherModel:
    return OtherModel(method, name, {"path": name, "sha256": "5ab1e"})


def captioned(**changes: object) -> Diffusion:
    torch.manual_seed(0)
    text = TextEncoder(dim=6, width=8, max_length=32, max_words=8, vocabulary=50, num_layers=1)
    return build(**({"network": Denoiser(text), "sampler": ONE, "condition_dropout": 0.1} | changes))


def within(*images: torch.Tensor) -> torch.Tensor:
    """Where no image is limited to [-1, 1]."""
    return torch.stack(images).abs().amax(dim=0) < 1


def assert_extrapolates(found: torch.Tensor, scale: float, given: torch.Tensor, without: torch.Tensor) -> None:
    expected = without + scale * (given - without)
    inside = within(given, without, expected)
    assert inside.float().mean() > 0.3
    torch.testing.assert_close(found[inside], expected[inside], rtol=0, atol=1e-5)
    assert not torch.allclose(given, without, atol=1e-3)


def test_guidance_leads_away_from_a_negative_label():
    method = build(num_classes=3, **BARE)
    drawn = method.draw(range(4), 0) | {"label": torch.tensor([0, 1, 0, 1])}
    given = method.sample(drawn)
    without = method.sample(drawn | {"label": torch.full((4,), 2)})
    options = replace(ONE, guidance=1.5, negative=2)
    method.check_options(options)
    assert_extrapolates(method.sample(drawn, options), 1.5, given, without)
    zeroth = method.sample(drawn, replace(ONE, guidance=0.0, negative=0))
    torch.testing.assert_close(zeroth, method.sample(drawn | {"label": torch.zeros(4, dtype=torch.int64)}), rtol=0, atol=1e-6)


@pytest.mark.parametrize("length", [16, 48])  # other than the encoder's 32
def test_guidance_leads_away_from_a_negative_caption(length):
    method = captioned(**BARE)
    drawn = method.draw(range(3), 0)

    def with_caption(text: str) -> Batch:
        return drawn | {"caption": encode([text], length).expand(3, -1)}

    given, without = method.sample(with_caption("a red circle")), method.sample(with_caption("blue"))
    options = replace(ONE, guidance=1.5, negative="blue")
    method.check_options(options)
    assert_extrapolates(method.sample(with_caption("a red circle"), options), 1.5, given, without)


@pytest.mark.parametrize("num_classes", [0, 2])
def test_autoguidance_leads_away_from_a_weaker_model(num_classes):
    method, weak = build(num_classes=num_classes, **BARE), build(num_classes=num_classes, **BARE)
    with torch.no_grad():
        for parameter in weak.parameters():
            parameter.mul_(0.7)
    drawn = method.draw(range(4), 0)
    options = replace(ONE, guidance=1.4, autoguidance=other(weak))
    method.check_options(options)
    assert_extrapolates(method.sample(drawn, options), 1.4, method.sample(drawn), weak.sample(drawn))
    several = replace(options, sampler="heun", steps=3, guidance_until=1.0)
    assert not torch.equal(method.sample(drawn, several), method.sample(drawn, replace(ONE, sampler="heun", steps=3)))


def test_a_guide_may_have_another_prediction():
    method, weak = build("edm", **BARE), build("edm", prediction="data", sigma_data=None, **BARE)
    options = replace(ONE, guidance=2.0, autoguidance=other(weak))
    method.check_options(options)
    drawn = method.draw(range(2), 0)
    assert_extrapolates(method.sample(drawn, options), 2.0, method.sample(drawn), weak.sample(drawn))


@pytest.mark.parametrize("guide", [
    build("flow", num_classes=2), build("flow", image_size=4), build("flow", channels=1), build("edm"), captioned(),
    build("ddpm"), tiny.gan(),
])  # fmt: skip
def test_a_guide_of_other_data_or_another_path_is_refused(guide):
    with raises(ConfigError, "autoguidance=weak.pt"):
        build("flow").check_options(replace(ONE, guidance=2.0, autoguidance=other(guide)))


def discrete(**changes: object) -> VariancePreserving:
    return VariancePreserving(**({"num_times": 20, "schedule": "linear", "beta_min": 1e-3, "beta_max": 0.5} | changes))


LINE, EDM = StraightLine(shift=1.0), VarianceExploding(sigma_min=0.002, sigma_max=80.0, rho=7.0)


@pytest.mark.parametrize(("one", "another", "same"), [
    (LINE, StraightLine(shift=3.0), True),  # the shift is one of the solver's grid
    (EDM, VarianceExploding(sigma_min=0.01, sigma_max=50.0, rho=5.0), True), (LINE, EDM, False), (EDM, LINE, False),
    (discrete(), discrete(), True), (discrete(), discrete(num_times=30), False), (discrete(), discrete(beta_max=0.4), False),
    (discrete(), LINE, False),
])  # fmt: skip
def test_paths_have_the_same_times_if_these_mean_the_same_noise(one, another, same):
    assert one.has_times_of(another) is same


@pytest.mark.parametrize(("options", "key"), [
    ({"negative": "blue"}, "negative"), ({"negative": 0}, "negative"), ({"autoguidance": other(None)}, "autoguidance"),
    ({"guidance": 2.0, "negative": "blue", "autoguidance": other(None)}, "negative"),
])  # fmt: skip
def test_options_without_guidance_or_together_are_refused(options, key):
    with pytest.raises(ValueError, match=rf"^{key}="):
        DiffusionOptions(**options)


@pytest.mark.parametrize(("method", "negative"), [
    (build(), "blue"), (build(), 1), (build(num_classes=2), 2), (build(num_classes=2), -1), (build(num_classes=2), "blue"),
    (captioned(), 3),
])  # fmt: skip
def test_a_negative_that_is_no_condition_of_the_model_is_refused(method, negative):
    with raises(ConfigError, "negative"):
        method.check_options(DiffusionOptions(guidance=2.0, negative=negative))


@pytest.mark.parametrize(("method", "words"), [
    (build(), ["autoguidance"]), (build(num_classes=2, condition_dropout=0.0), ["autoguidance", "negative"]),
    (captioned(condition_dropout=0.0), ["autoguidance", "negative"]),
])  # fmt: skip
def test_guidance_without_an_effect_is_refused_with_what_works_instead(method, words):
    for word in words:
        with raises(ConfigError, "guidance", word=word):
            method.check_options(DiffusionOptions(guidance=2.0))


@pytest.mark.parametrize(("options", "is_valid"), [
    ({"churn_from": 1.0, "churn_until": 0.5}, False), ({"churn_from": 1.0, "churn_until": 1.0}, True),
    ({"churn_from": 1.0}, True), ({"churn_until": 0.5}, True), ({"churn_until": -1.0}, False),
])  # fmt: skip
def test_an_empty_interval_of_added_noise_is_refused(options, is_valid):
    with contextlib.nullcontext() if is_valid else pytest.raises(ValueError, match=r"^churn_from="):
        DiffusionOptions(churn=1.0, **options)


def test_a_negative_that_is_also_a_requested_condition_is_refused():
    text = {"caption": encode(["a red circle", "blue"], 16)}
    for row, negative, is_same in (
        ({"label": torch.tensor([0, 2])}, 2, True), ({"label": torch.tensor([0, 2])}, 1, False), ({}, 1, False),
        (text, "blue", True), (text, "a red", False), (text, "a much longer caption than these", False),
    ):  # fmt: skip
        with raises(ConfigError, f"negative={negative}") if is_same else contextlib.nullcontext():
            require_other_conditions(DiffusionOptions(guidance=2.0, negative=negative), [{}, row])


def test_values_that_name_a_model_or_a_class_are_looked_up():
    weak = other(build())
    lookup = Lookup(lambda option, path: weak, lambda option, value: 7)
    given = {"guidance": 2.0, "autoguidance": "runs/weak", "steps": 3, "unknown": "x"}
    assert looked_up(build(), given, lookup) == given | {"autoguidance": weak}
    assert looked_up(build(num_classes=9), {"negative": "zebra"}, lookup) == {"negative": 7}
    assert looked_up(captioned(), {"negative": "zebra"}, lookup) == {"negative": "zebra"}
    with raises(ConfigError, "negative=zebra"):  # also without guidance, which would not help
        looked_up(build(), {"negative": "zebra"}, lookup)
    assert looked_up(build(num_classes=9), {"negative": None, "autoguidance": None}, lookup) == {
        "negative": None, "autoguidance": None
    }  # fmt: skip
    chosen = sampling_options(build(), {"guidance": 2.0, "autoguidance": weak})
    assert described(chosen)["autoguidance"] == {"path": "weak.pt", "sha256": "5ab1e"}
    with raises(ConfigError, "autoguidance=runs/weak"):
        sampling_options(build(), {"guidance": 2.0, "autoguidance": "runs/weak"})
    with raises(ConfigError, "autoguidance", word="checkpoint"):
        sampling_options(build(), {"guidance": 2.0, "autoguidance": 3})
