import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from errors import raises
from torch import nn

from genimg.errors import ConfigError
from genimg.losses.reconstruction import ReconstructionLoss
from genimg.methods.capabilities import SamplesNearby
from genimg.methods.options import CodeOptions
from genimg.methods.vq_vae import VQVAE
from genimg.networks.conditioning import ConditionEncoder, OneHot, Unconditional
from genimg.networks.pixel_cnn import PixelCNN
from genimg.networks.vector_quantizer import VectorQuantizer
from genimg.networks.vq_autoencoder import Decoder, Encoder
from genimg.training.device import Precision
from genimg.training.update import StepRNG, Updater, split
from genimg.types import Progress

CPU = torch.device("cpu")
L2 = ReconstructionLoss(kind="l2", epsilon=None, known_weight=1.0)
CODEBOOK = {"codebook/perplexity", "codebook/used_codes"}
AUTOENCODER = {"loss/reconstruction", "loss/commitment", "loss/total", "grad_norm/autoencoder"} | CODEBOOK
PRIOR = {"loss/prior_nats", "loss/prior_bits_per_code", "grad_norm/prior"}


def build(
    *, quantizer: dict[str, Any] | None = None, condition: ConditionEncoder | None = None, dropout: float = 0.0, **changes: Any
) -> VQVAE:
    """K = 6, D = 5, 4x4 codes of 16 px."""
    torch.manual_seed(0)
    sizes = {"channels": 1, "dim": 5, "width": 8, "residual_width": 4, "num_blocks": 1, "num_downs": 2}
    settings = {"num_codes": 6, "dim": 5, "decay": 0.9, "restart_below": 0.1} | (quantizer or {})
    parts = {
        "encoder": Encoder(image_size=16, **sizes),
        "decoder": Decoder(**sizes),
        "quantizer": VectorQuantizer(**settings),
        "prior": PixelCNN(
            num_codes=6, width=6, num_blocks=2, kernel_size=3, dropout=dropout, condition=condition or Unconditional()
        ),
    }
    others = {"loss": L2, "data_variance": 1.0, "commitment_weight": 0.25, "autoencoder_until": 100, "prior_from": 0}
    return VQVAE(**(parts | others | changes))


def real_images(count: int = 8, seed: int = 1) -> torch.Tensor:
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def updater(method: VQVAE, microbatches: int = 1) -> Updater:
    groups = method.parameter_groups()
    optimizers = {name: torch.optim.Adam(parameters, lr=1e-3) for name, parameters in groups.items()}
    rng = StepRNG(0, microbatches, CPU)
    return Updater(groups, optimizers, precision=Precision("fp32", CPU), max_grad_norm=None, rng=rng)


def run_steps(method: VQVAE, *steps: int, microbatches: int = 1, update: Updater | None = None) -> dict[str, torch.Tensor]:
    """Train on batches of 8, each a function of the step; the last step's metrics."""
    update = update or updater(method, microbatches)
    for step in steps:
        update.begin(step)
        batch = {"image": real_images(seed=step), "label": torch.arange(8) % 3}
        metrics = method.step(split(batch, microbatches), Progress(images=8 * step, batch_size=8), update)
    return metrics


def state(method: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in method.state_dict().items()}


def changed(before: dict[str, torch.Tensor], method: nn.Module) -> set[str]:
    """Parts of the method whose state is another."""
    return {name.split(".")[0] for name, value in method.state_dict().items() if not torch.equal(value, before[name])}


def test_the_loss_is_that_of_equation_3():
    method = build(quantizer={"decay": None, "restart_below": None}, commitment_weight=0.5, data_variance=0.25)
    image = real_images()
    features = method.encoder(image).double()
    flat = features.permute(0, 2, 3, 1).reshape(-1, 5)
    codes = torch.cdist(flat, method.quantizer.codebook.double()).argmin(dim=1)
    vectors = method.quantizer.codebook.double()[codes].view(8, 4, 4, 5).permute(0, 3, 1, 2)
    output = method.decoder(vectors.float()).double()
    reconstruction = (output - image).square().mean()
    distance = (features - vectors).square().mean()
    metrics = run_steps_on(method, image)
    assert metrics["loss/reconstruction"].item() == pytest.approx(reconstruction.item(), rel=1e-5)
    assert metrics["loss/commitment"].item() == pytest.approx(distance.item(), rel=1e-5)
    assert metrics["loss/total"].item() == pytest.approx((4.0 * reconstruction + 1.5 * distance).item(), rel=1e-5)


def run_steps_on(method: VQVAE, image: torch.Tensor) -> dict[str, torch.Tensor]:
    update = updater(method)
    update.begin(0)
    return method.step([{"image": image}], Progress(images=0, batch_size=len(image)), update)


@pytest.mark.parametrize("decay", [0.9, None])
def test_every_part_gets_the_gradient_of_its_own_terms(decay):
    """The encoder that of the reconstruction, straight through, and of the commitment; a learnt codebook that of the middle."""
    method = build(quantizer={"decay": decay, "restart_below": None if decay is None else 0.1})
    image = real_images()
    batch = method._quantize({"image": image})
    method._autoencoder_loss(batch | {"image": image})[0].backward()
    features, vectors = batch["features"].detach().requires_grad_(), batch["vectors"].detach().requires_grad_()
    L2(method.decoder(vectors), image).backward()
    own = 0.25 * 2 * (features.detach() - vectors.detach()) / features.numel()
    found = torch.autograd.grad(method.encoder(image), list(method.encoder.parameters()), vectors.grad + own)
    for parameter, expected in zip(method.encoder.parameters(), found, strict=True):
        assert torch.allclose(parameter.grad, expected, atol=1e-6)
    if decay is None:
        pulls = 2 * (vectors.detach() - features.detach()) / features.numel()
        expected = torch.zeros(6, 5).index_add_(0, batch["codes"].flatten(), pulls.permute(0, 2, 3, 1).reshape(-1, 5))
        assert torch.allclose(method.quantizer.codebook.grad, expected, atol=1e-7)


def test_the_prior_learns_the_likelihood_of_the_codes():
    method = build(autoencoder_until=0)
    codes = method.encode({"image": real_images()})
    logits = method.prior(codes, torch.empty(8, 0)).double()
    log_probabilities = logits.log_softmax(1).gather(1, codes[:, None]).sum(dim=(1, 2, 3))
    metrics = run_steps_on(method, real_images())
    nats = -log_probabilities.mean().item()
    assert metrics["loss/prior_nats"].item() == pytest.approx(nats, rel=1e-5)
    assert metrics["loss/prior_bits_per_code"].item() == pytest.approx(nats / 16 / math.log(2), rel=1e-5)


@pytest.mark.parametrize(
    ("until", "since", "step", "metrics", "parts"),
    [
        (100, 0, 0, AUTOENCODER | PRIOR, {"encoder", "quantizer", "decoder", "prior"}),
        (16, 16, 1, AUTOENCODER, {"encoder", "quantizer", "decoder"}),
        (16, 16, 2, PRIOR, {"prior"}),
        (24, 8, 0, AUTOENCODER, {"encoder", "quantizer", "decoder"}),
        (24, 8, 1, AUTOENCODER | PRIOR, {"encoder", "quantizer", "decoder", "prior"}),
        (0, 0, 0, PRIOR, {"prior"}),
    ],
)
def test_each_stage_trains_its_own_parts_and_leaves_the_others_as_they_are(until, since, step, metrics, parts):
    method = build(autoencoder_until=until, prior_from=since, dropout=0.5)
    before = state(method)
    found = run_steps(method, step)
    assert set(found) == metrics
    assert all(value.shape == () and not value.requires_grad for value in found.values())
    assert changed(before, method) == parts
    assert all(module.training for module in method.modules())


def test_in_the_second_stage_the_encoder_is_in_evaluation_mode():
    class Noisy(Encoder):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            assert not self.training
            assert not torch.is_grad_enabled()
            return super().forward(image)

    noisy = Noisy(image_size=16, channels=1, dim=5, width=8, residual_width=4, num_blocks=1, num_downs=2)
    method = build(encoder=noisy, autoencoder_until=0)
    run_steps(method, 0)
    assert noisy.training


def test_metrics_of_the_codebook_are_those_of_the_whole_step():
    whole, cut = build(), build()
    codes = whole.encode({"image": real_images(seed=0)})
    counts = torch.bincount(codes.flatten(), minlength=6).double()
    share = counts[counts > 0] / counts.sum()
    expected = (-(share * share.log()).sum()).exp().item()
    for metrics in (run_steps(whole, 0), run_steps(cut, 0, microbatches=4)):
        assert metrics["codebook/perplexity"].item() == pytest.approx(expected, rel=1e-5)
        assert metrics["codebook/used_codes"].item() == (counts > 0).sum().item()


def test_microbatches_give_the_codebook_and_the_weights_of_one_batch():
    """Without restarts, whose random numbers are those of the microbatches."""
    whole, cut = build(quantizer={"restart_below": 0.0}), build(quantizer={"restart_below": 0.0})
    for method in (whole, cut):
        method.quantizer.counts.fill_(2.0)
        method.quantizer.sums.copy_(2.0 * method.quantizer.codebook)
    run_steps(whole, 0, 1)
    run_steps(cut, 0, 1, microbatches=4)
    for name, value in whole.state_dict().items():
        assert torch.allclose(cut.state_dict()[name], value, atol=2e-4), name
    assert torch.allclose(cut.quantizer.codebook, whole.quantizer.codebook, atol=1e-5)


def test_a_resumed_training_goes_on_bit_for_bit():
    straight, first = (
        build(autoencoder_until=24, prior_from=8, dropout=0.2),
        build(autoencoder_until=24, prior_from=8, dropout=0.2),
    )
    run_steps(straight, *range(5))
    update = updater(first)
    run_steps(first, 0, 1, update=update)
    second = build(autoencoder_until=24, prior_from=8, dropout=0.2)
    second.load_state_dict(first.state_dict())
    resumed = updater(second)
    for name, optimizer in resumed.optimizers.items():
        optimizer.load_state_dict(update.optimizers[name].state_dict())
    run_steps(second, 2, 3, 4, update=resumed)
    assert not changed(state(straight), second)


def test_parameter_groups_cover_every_parameter_once():
    for decay in (0.9, None):
        method = build(quantizer={"decay": decay, "restart_below": None if decay is None else 0.1})
        groups = method.parameter_groups()
        assert list(groups) == ["autoencoder", "prior"]
        assert sorted(id(p) for group in groups.values() for p in group) == sorted(map(id, method.parameters()))


def test_reconstructions_decode_the_nearest_codes_and_stay_in_range():
    method = build()
    with torch.no_grad():
        method.decoder.ups[-1].weight.mul_(100.0)
    reconstruction = method.reconstruct({"image": real_images()})
    assert not reconstruction.requires_grad
    assert reconstruction.abs().max().item() == 1.0
    with torch.no_grad():
        _, vectors = method.quantizer(method.encoder(real_images()))
        expected = method.decoder(vectors).clamp(-1, 1)
    assert torch.allclose(reconstruction, expected, atol=1e-5)


def test_samples_decode_grids_of_the_prior_and_are_a_function_of_seed_and_index():
    method = build(dropout=0.5)
    drawn = method.draw(range(6), 3)
    assert drawn["uniform"].shape == (6, 4, 4)
    samples = method.sample(drawn)
    assert samples.shape == (6, 1, 16, 16)
    assert not samples.requires_grad
    codes = method.prior.eval().sample(drawn["uniform"], torch.empty(6, 0))
    assert torch.equal(samples, method.decode(codes))
    parts = torch.cat([method.sample(method.draw([index], 3)) for index in range(6)])
    assert torch.allclose(parts, samples, atol=1e-6)
    assert not torch.equal(method.draw(range(6), 4)["uniform"], drawn["uniform"])


@pytest.mark.parametrize("training", [True, False])
def test_sampling_keeps_the_mode_and_the_state(training):
    method = build().train(training)
    before = state(method)
    method.sample(method.draw(range(4), 0))
    method.check({"image": real_images(2)})
    assert all(module.training == training for module in method.modules())
    assert not changed(before, method)


def test_an_option_is_the_temperature_of_the_prior():
    method = build()
    with torch.no_grad():
        method.prior.head[-1].weight.mul_(30.0)
    drawn = method.draw(range(50), 0)
    codes = [method.prior.sample(drawn["uniform"], torch.empty(50, 0), temperature=t) for t in (1.0, 0.01)]
    assert len(codes[0].flatten(1).unique(dim=0)) > 10 * len(codes[1].flatten(1).unique(dim=0))
    assert torch.equal(method.sample(drawn, CodeOptions(temperature=0.01)), method.decode(codes[1]))
    for amount in (0.0, 1.0, 2.0):
        with pytest.raises(ValueError, match=r"^temperature="):
            CodeOptions(temperature=amount)
    assert not isinstance(method, SamplesNearby)  # codes have no distances


def test_a_prior_of_labels_samples_the_classes_that_are_asked_for():
    method = build(condition=OneHot(num_classes=3))
    assert method.batch_keys == ("image", "label")
    assert method.num_classes == 3
    labels = torch.arange(4096) % 2  # no 2
    method.set_condition_bank({"label": labels})
    drawn = method.draw(range(40), 0)
    assert set(drawn["label"].tolist()) == {0, 1}
    with torch.no_grad():
        for block in method.prior.blocks:
            block.horizontal_gate.condition.weight.mul_(30.0)
    asked = [method.sample(drawn | {"label": torch.full((40,), label)}) for label in range(3)]
    assert not torch.allclose(asked[0], asked[1], atol=1e-3)
    preview = method.preview({"image": real_images()}, drawn)["samples"]
    assert preview.shape[:2] == (3, 13)
    expected = method.sample({"uniform": drawn["uniform"][13:26], "label": torch.ones(13).long()})
    assert torch.allclose(preview[1], expected, atol=1e-6)
    before = state(method)
    run_steps(method, 0)
    assert "prior.blocks.0.horizontal_gate.condition.weight" in {
        name for name, value in method.state_dict().items() if not torch.equal(value, before[name])
    }


def test_preview_shows_samples_and_inputs_beside_their_reconstructions():
    method = build()
    drawn = method.draw(range(3), 0)
    preview = method.preview({"image": real_images()}, drawn)
    assert torch.equal(preview["samples"], method.sample(drawn))
    assert torch.equal(preview["reconstructions"][0::2], real_images())
    assert torch.equal(preview["reconstructions"][1::2], method.reconstruct({"image": real_images()}))


def test_another_distance_and_autocast_go_through():
    method = build(loss=ReconstructionLoss(kind="l1", epsilon=None, known_weight=1.0))
    image = real_images()
    with torch.autocast("cpu", torch.bfloat16):
        batch = method._quantize({"image": image}) | {"image": image}
        loss, metrics = method._autoencoder_loss(batch)
        output = method.decoder(batch["vectors"]).float()
    assert batch["features"].dtype == batch["vectors"].dtype == loss.dtype == torch.float32
    assert metrics["loss/reconstruction"].item() == pytest.approx(F.l1_loss(output, image).item(), rel=1e-2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data_variance": 0.0}, "data_variance=0.0"),
        ({"commitment_weight": -1.0}, "commitment_weight=-1.0"),
        ({"prior_from": 101}, "prior_from=101"),
        ({"quantizer": {"dim": 4}}, "encoder.dim=5"),
        ({"quantizer": {"num_codes": 7}}, "prior.num_codes=6"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, words):
    with raises(ValueError, words):
        build(**changes)


def test_check_refuses_masks_weights_and_shapes_that_do_not_fit():
    with pytest.raises(ConfigError) as caught:
        build(loss=ReconstructionLoss(kind="l2", epsilon=None, known_weight=0.5)).check({"image": real_images(2)})
    assert caught.value.key == "loss.known_weight"
    with raises(RuntimeError, word="channels"):
        build().check({"image": torch.zeros(2, 3, 16, 16)})
