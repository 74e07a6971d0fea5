"""Several processes against one: three are started once, work as a group of three and then, two of them, as one of two.

The tests look at what each rank saw. What a single process gives is compared with other programs in tests/evaluation.
"""

import gc
import os
import socket
import time
import weakref
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import tiny
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from errors import raises
from test_resume import tensors
from torch import nn

from genimg.data.datasets.builtin import ArrayDataset
from genimg.data.loader import ImageLoader
from genimg.errors import ConfigError
from genimg.evaluation.evaluator import Evaluator
from genimg.evaluation.extractors.base import Extractor
from genimg.evaluation.feature_stats import Collector
from genimg.evaluation.gaussian import FeatureSums, InceptionScoreSums
from genimg.evaluation.image_sets import DatasetImages
from genimg.evaluation.metrics import (
    ClassCoverage,
    ConditionalAccuracy,
    FrechetDistance,
    InceptionScore,
    KernelDistance,
    PrecisionRecall,
)
from genimg.methods.base import Method, trained_groups
from genimg.methods.options import NoOptions
from genimg.training import gradient_sum
from genimg.training.batch_statistics import BatchStatistics
from genimg.training.device import Precision
from genimg.training.ema import Exponential, WeightAverage
from genimg.training.freezing import freeze
from genimg.training.gradient_sum import GradientSum
from genimg.training.optimizers import plain_state
from genimg.training.sharding import Sharding
from genimg.training.update import StepRNG, Updater, split
from genimg.types import Progress
from genimg.utils import distributed
from genimg.utils.distributed import (
    AnotherProcessError,
    Vote,
    all_gather_rows,
    all_reduce_,
    begin_sum_,
    broadcast_,
    broadcast_object,
    first_of_each_host,
    least_over_ranks,
    on_every_rank,
    own_part,
    processes_of_torchrun,
    raise_on_any_rank,
    rank,
    shard,
    sum_over_ranks,
    world_size,
)
from genimg.utils.rng import normal_latents

CPU = torch.device("cpu")
SHAPE, NUM_FEATURES, NUM_CLASSES = (1, 12, 12), 6, 5
NUM_IMAGES = 41  # divisible neither by 2 nor by 3
KEPT = np.array([0, 5, 13, 14, 20, 27, 40])
SECONDS = 120  # after which a group counts as hung


class Projection(Extractor):
    """A fixed random projection of the pixels."""

    def __init__(self):
        network = nn.Linear(144, NUM_FEATURES + NUM_CLASSES, bias=False).double()
        network.weight.data = torch.randn(network.weight.shape, generator=torch.Generator().manual_seed(0)).double()
        names = tuple("abcde")
        super().__init__(
            name="projection",
            network=network,
            weights_sha256=None,
            resize="none",
            channels="none",
            has_logits=True,
            class_names=names,
        )

    def extract(self, images):
        projected = self.network(images.flatten(1).double() / 255.0 - 0.5)
        return projected[:, :NUM_FEATURES], projected[:, NUM_FEATURES:]


class Painter(Method):
    """Draws each latent as pixels, and reconstructs an image as half of it."""

    sampling_options = NoOptions()

    def before_sampling(self):
        pass

    def check_options(self, options):
        pass

    def encode(self, batch):
        raise NotImplementedError

    def parameter_groups(self):
        return {}

    def step(self, batch, progress, update):
        return {}

    def draw(self, indices, seed):
        return {"latent": normal_latents(seed, indices, 144), "label": torch.tensor(indices) % NUM_CLASSES}

    def sample(self, batch, options=None):
        return (batch["latent"] * 0.4).clamp(-1.0, 1.0).view(-1, *SHAPE)

    def reconstruct(self, batch):
        return batch["image"] / 2.0

    def check(self, image):
        pass

    def preview(self, batch, drawn):
        return {}


def data_of_evaluation():
    pixels = np.random.default_rng(0).integers(0, 256, (50, *SHAPE), dtype=np.uint8)
    source = ArrayDataset("random", pixels, labels=np.arange(50) % NUM_CLASSES, class_names="abcde")
    return ImageLoader(source, storage="host", num_workers=0, horizontal_flip=False, max_corrupt=0, device=CPU)


def evaluate(cache_dir):
    """With every metric there is, intervals and reconstructions."""
    metrics = {
        "frechet": FrechetDistance(),
        "kernel": KernelDistance(subsets=3, subset_size=20),
        "rates": PrecisionRecall(neighbors=3, density_neighbors=5),
        "score": InceptionScore(splits=3),
        "classes": ClassCoverage(least_share=0.1),
        "accuracy": ConditionalAccuracy(),
    }
    evaluator = Evaluator(
        extractor=Projection(),
        metrics=metrics,
        num_images=NUM_IMAGES,
        num_real=None,
        batch_size=8,
        seed=0,
        bootstrap=5,
        reconstructions=31,
        cache_dir=str(cache_dir),
    )
    method, data = Painter(), data_of_evaluation()
    real = DatasetImages(data)
    result = evaluator.compare(real, evaluator.generated(method, CPU, data.source.class_names), CPU)
    return evaluator.with_input_metrics(result, method, real, "train", CPU)


def features_and_logits():
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(NUM_IMAGES, NUM_FEATURES, generator=generator, dtype=torch.float64)
    features = features + torch.arange(NUM_IMAGES)[:, None] / 4.0  # the ranks' means differ
    return features, 2.0 * torch.randn(NUM_IMAGES, NUM_CLASSES, generator=generator)


def statistics_of_the_own_share():
    features, logits = features_and_logits()
    mine = shard(NUM_IMAGES)
    sums = FeatureSums()
    scores = InceptionScoreSums(NUM_IMAGES, 4, mine.start)
    collector = Collector(NUM_IMAGES, first=mine.start, splits=(1, 4), kept=KEPT, keep_logits=True)
    for start in range(mine.start, mine.stop, 7):
        part = slice(start, min(start + 7, mine.stop))
        sums.add(features[part])
        scores.add(logits[part])
        collector.add(features[part], logits[part], torch.arange(part.start, part.stop))
    moments, summary = sums.result(), collector.result()
    return {
        "sums": vars(moments),
        "scores": scores.result(),
        "scores again": scores.result(),
        "sums again": vars(sums.result()),
        "collector": {
            "moments": vars(summary.moments),
            "features": summary.features,
            "positions": summary.positions,
            "logits": summary.logits,
            "predictions": summary.predictions,
            "labels": summary.labels,
            "scores": summary.scores,
        },
    }


def refusal_of_too_few_images():
    """One image altogether, on the first rank; the others have none to add and are not asked."""
    sums = FeatureSums()
    if rank() == 0:
        sums.add(torch.zeros(1, 3))
    try:
        sums.result()
    except ValueError as error:
        return str(error)
    return None


def added_in_buckets():
    """Several messages, one tensor larger than any of them, and another memory format."""
    distributed._BUCKET = 10
    tensors = [torch.full(shape, float(rank() + 1)) for shape in ((4,), (2, 3), (5, 5), ())]
    images = torch.arange(24.0).view(1, 2, 3, 4).contiguous(memory_format=torch.channels_last) * (rank() + 1)
    all_reduce_([*tensors, images])
    assert images.is_contiguous(memory_format=torch.channels_last)
    return [*tensors, images]


def votes():
    """The second rank says yes once to the first question, in the third round, and every rank always to the second."""
    vote = Vote(2)
    outcomes = [vote.cast(rank() == 1 and turn == 2, True) for turn in range(5)]
    vote.cast(rank() == 1, False)
    return [*outcomes, vote.wait(), vote.wait()]


def summed_gradients():
    """Two microbatches. One parameter has no gradient, and one has it from the first microbatch alone."""
    shapes = [(12,), (4,), (2, 3), (), (5, 1)]
    images = torch.arange(24.0).view(1, 2, 3, 4).contiguous(memory_format=torch.channels_last)
    parameters = [nn.Parameter(torch.full(shape, i + 1.0)) for i, shape in enumerate(shapes)] + [nn.Parameter(images)]
    sums = GradientSum(parameters, size=10)
    begun = []

    def begin(tensor):
        begun.append((tensor.numel(), sum(each.grad is not None for each in parameters)))
        return begin_sum_(tensor)

    results = []
    with patch.object(gradient_sum, "begin_sum_", begin):
        for unused in (set(), {1, 4}):
            for parameter in parameters:
                parameter.grad = None
            for microbatch in range(2):
                with sums.of_backward(is_last=microbatch == 1):
                    loss = torch.zeros(())
                    for i, parameter in enumerate(parameters):
                        if i not in unused or (i == 4 and not microbatch):
                            loss = loss + (rank() + 1) * parameter.square().sum()
                    loss.backward()
            results.append([each.grad.clone() if each.grad is not None else None for each in parameters])
        for parameter in parameters:
            parameter.grad = None
        first_begun = list(begun)
        begun.clear()
        with sums.of_backward(is_last=True):
            sum(parameter.square().sum() for parameter in parameters).backward()
    assert parameters[-1].grad.is_contiguous(memory_format=torch.channels_last)
    mixed = [nn.Parameter(torch.ones(2, dtype=dtype)) for dtype in (torch.float64, torch.float32)]
    with GradientSum(mixed).of_backward(is_last=True):
        sum((rank() + 1) * parameter.double().sum() for parameter in mixed).backward()
    reached = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    with GradientSum(reached).of_backward(is_last=True):
        ((rank() + 1) * reached[0] * Undefined.apply(reached[1]) * reached[2]).sum().backward()
    network = weakref.ref(used_once(nn.Linear(2, 2)))
    gc.collect()
    return {
        "parameters": [each.data for each in parameters],
        "gradients": results,
        "begun": first_begun,
        "overlap": begun,
        "mixed": [each.grad for each in mixed],
        "undefined": [each.grad for each in reached],
        "freed": network() is None,
    }


class Undefined(torch.autograd.Function):
    """The identity without a derivative: autograd reaches its input, as it reaches biases in penalties, with no gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return None


def used_once(network):
    sums = GradientSum(list(network.parameters()))
    with sums.of_backward(is_last=True):
        network(torch.ones(1, 2)).sum().backward()
    return network


def averaged_statistics():
    """Of batch norm: two forward passes with an average begun between them, then two with an average begun after both."""
    norm = nn.BatchNorm1d(2)
    statistics = BatchStatistics([norm])
    images = torch.tensor([[0.0, 1.0], [2.0, 5.0]]) * (rank() + 1)
    found = []
    for begins in ((0,), (0, 1)):
        for number in range(2):
            norm(images + number)
            if number in begins:
                statistics.begin_average()
        statistics.finish_average()
        found.append([norm.running_mean.clone(), norm.running_var.clone()])
    statistics.finish_average()  # nothing has changed
    return [*found, [norm.running_mean, norm.running_var]]


class Blocks(nn.Module):
    """A network with a scalar, which is not divided, and a bias with fewer numbers than there are ranks."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(6, 6, dtype=torch.float64) for _ in range(2))
        self.last = nn.Linear(6, 1, dtype=torch.float64)
        self.gain = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x).tanh()
        return self.gain * self.last(x)


class Sharded(Method):
    inference_networks = ("network",)

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = Blocks()

    def parameter_groups(self):
        return {"network": list(self.network.parameters())}

    def shardable_networks(self):
        return ("network",)

    def step(self, batch, progress, update):
        return update("network", self.loss, batch)

    def loss(self, batch):
        return self.network(batch["x"]).square().mean(), {}

    def check(self, batch):
        pass

    def preview(self, batch, drawn):
        return {}


def trained(sharding_of, batches):
    """Weights, an average of them and the gradient norms of a training with clipped gradients."""
    method = Sharded()
    sharding = sharding_of(method)
    average = WeightAverage(method, Exponential(half_life=10, ramp_up=None), sharding)
    groups = method.parameter_groups()
    optimizer = torch.optim.AdamW(groups["network"] if sharding is None else sharding.optimizer_groups(groups["network"]), 0.1)
    update = Updater(groups, {"network": optimizer}, precision=Precision("fp32", CPU), max_grad_norm=0.05,
                     networks=[method.network], sharding=sharding)  # fmt: skip
    norms = []
    for step, batch in enumerate(batches):
        update.begin(step)
        norms.append(method.step(batch, None, update)["grad_norm/network"].item())
        average.update(0.5)
    state = {"method": method.state_dict(), "average": average.state_dict(),
             "optimizer": plain_state(optimizer, groups["network"])["state"]}  # fmt: skip
    return method, sharding, average, state, norms


def training_with_divided_weights():
    """Three steps of two microbatches, by all ranks with a part of the weights, and by each alone with all of them."""
    x = torch.randn(3, 12 * world_size(), 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    own = [split({"x": each}, 2) for each in x.unflatten(1, (world_size(), 12))[:, rank()]]
    method, sharding, average, state, norms = trained(lambda method: Sharding(method, CPU), own)
    part = sum(own_part(each).numel() for each in method.parameters())
    with distributed.alone():
        whole, _, alone_average, alone_state, alone_norms = trained(lambda method: None, [split({"x": each}, 2) for each in x])
    sampled = [sharding.sampler(each).network(x[0]) for each in (method, average.method)]
    expected = [each.network(x[0]).detach() for each in (whole, alone_average.method)]
    restored = Sharded()
    again = Sharding(restored, CPU)
    restored.load_state_dict(again.divided(alone_state["method"], restored))
    gathered, restored_state = sharding.gathered(state), again.gathered(restored.state_dict())
    return {
        "norms": (norms, alone_norms),
        "sampled": (sampled, expected),
        "part": part,
        "state": (gathered if rank() == 0 else None, alone_state),
        "restored": restored_state if rank() == 0 else None,
    }


def failure_of_the_second():
    try:
        with raise_on_any_rank():
            if rank() == 1:
                raise OSError("no such folder on this host")
    except (OSError, AnotherProcessError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def bug_of_the_second():
    try:
        with raise_on_any_rank():
            if rank() == 1:
                {}["absent"]
    except KeyError:
        return "its own"
    except AnotherProcessError as error:
        return error.details
    return None


def copied_from_the_first():
    images = torch.arange(24.0).view(1, 2, 3, 4).contiguous(memory_format=torch.channels_last) + rank()
    count = torch.tensor(rank())
    broadcast_([images, count])
    return [images, count]


def files_when_entering(folder):
    """All these ranks are of one host."""
    folder.mkdir(exist_ok=True)
    with first_of_each_host():
        seen = (folder / "downloaded").exists()
        if rank() == 0:
            time.sleep(0.3)
            (folder / "downloaded").touch()
    return seen


def training_with_frozen_parts():
    """Weights of a GAN with frozen parts after three steps: by all ranks with a microbatch each, and by each alone with all."""
    images = torch.rand(3, 4 * world_size(), 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def trained_by(batches):
        gan = tiny.gan()
        start = {name: value.clone() for name, value in gan.state_dict().items()}
        freeze(gan, ["generator.layers.0", "generator.layers.1", "discriminator.features"])
        groups = trained_groups(gan)
        update = Updater(
            groups, {name: torch.optim.AdamW(own, 1e-2) for name, own in groups.items()}, precision=Precision("fp32", CPU),
            max_grad_norm=None, rng=StepRNG(0, len(batches[0]), CPU), networks=list(gan.children()), has_frozen=True,
        )  # fmt: skip
        gan.train()
        for step, batch in enumerate(batches):
            update.begin(step)
            gan.step(batch, Progress(step, 1), update)
            update.end()
        return start, gan.state_dict()

    start, together = trained_by([[{"image": each[4 * rank() :][:4]}] for each in images])
    with distributed.alone():
        _, single = trained_by([split({"image": each}, len(each) // 4) for each in images])
    return {"start": start, "together": together, "alone": single}


def what_this_process_sees(folder):
    own = torch.tensor([1.0, 10.0]) * (rank() + 1)
    total = sum_over_ranks(own)
    count = 2 * rank()  # none at all on the first
    result = {
        "rank": rank(),
        "world_size": world_size(),
        "shards": {total: list(shard(total)) for total in (0, 1, 2, 7, 12)},
        "sum": total,
        "integer sum": sum_over_ranks(torch.tensor(2**40 + rank())),
        "what was summed": own,
        "rows": all_gather_rows(torch.arange(2 * count).view(count, 2) + 100 * rank()),
        "numbers": all_gather_rows(torch.full((3 - rank(),), rank(), dtype=torch.int64)),
        "too few images": refusal_of_too_few_images(),
        "least": least_over_ranks(torch.tensor([rank(), -rank()])),
        "added": added_in_buckets(),
        "first's": broadcast_object({"tensor": torch.full((2,), rank()), "text": f"of {rank()}"}),
        "all agree": on_every_rank(True),
        "all but one agree": on_every_rank(rank() != 1),
        "votes": votes(),
        "summed gradients": summed_gradients(),
        "divided weights": training_with_divided_weights(),
        "averaged statistics": averaged_statistics(),
        "frozen parts": training_with_frozen_parts(),
        "files of the first": files_when_entering(folder),
        "failure of the second": failure_of_the_second(),
        "bug of the second": bug_of_the_second(),
        "copied": copied_from_the_first(),
        **statistics_of_the_own_share(),
    }
    found = evaluate(folder / "cache")
    return {**result, "values": found.values, "intervals": found.intervals}


def work(index, ports, folder):
    """A process of each group that is large enough, as torchrun would start it; groups by their number of processes."""
    torch.set_num_threads(1)
    for processes, port in ports.items():
        if index >= processes:
            continue
        os.environ |= {"RANK": str(index), "LOCAL_RANK": str(index), "WORLD_SIZE": str(processes)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        with processes_of_torchrun("cpu") as device_name:
            seen = what_this_process_sees(folder / str(processes))
        seen |= {"device": device_name, "after": (dist.is_initialized(), rank(), world_size())}
        torch.save(seen, folder / f"{index} of {processes}.pt")


def free_ports(count):
    listeners = [socket.socket() for _ in range(count)]
    for listener in listeners:
        listener.bind(("127.0.0.1", 0))
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    """The folder where each process has left what it saw."""
    folder = tmp_path_factory.mktemp("ranks")
    ports = dict(zip((3, 2), free_ports(2), strict=True))
    spawned = mp.spawn(work, (ports, folder), nprocs=3, join=False)
    deadline = time.monotonic() + SECONDS
    try:
        while not spawned.join(timeout=1.0):
            assert time.monotonic() < deadline, "the ranks wait for each other"
    finally:
        for process in spawned.processes:
            if process.is_alive():
                process.kill()
    return folder


@pytest.fixture(scope="module", params=[2, 3], ids=["2 ranks", "3 ranks"])
def ranks(request, groups):
    """What each rank of a group of processes saw."""
    return [torch.load(groups / f"{i} of {request.param}.pt", weights_only=True) for i in range(request.param)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same in this process."""
    return SimpleNamespace(**statistics_of_the_own_share(), evaluation=evaluate(tmp_path_factory.mktemp("alone")))


def test_a_single_process_is_the_identity(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    tensor = torch.randn(3, 2)
    assert sum_over_ranks(tensor) is tensor
    assert all_gather_rows(tensor) is tensor
    assert (rank(), world_size()) == (0, 1)
    assert shard(7) == range(7)


@pytest.mark.parametrize("processes", [None, "1"])
@pytest.mark.parametrize("device_name", ["auto", "cpu", "cuda", "mps"])
def test_without_torchrun_the_device_is_the_configs_and_no_group_is_joined(monkeypatch, processes, device_name):
    if processes is None:
        monkeypatch.delenv("WORLD_SIZE", raising=False)
    else:
        monkeypatch.setenv("WORLD_SIZE", processes)
    with processes_of_torchrun(device_name) as found:
        assert found == device_name
        assert not dist.is_initialized()


def test_each_process_knows_its_place_and_leaves_the_group_at_the_end(ranks):
    assert [seen["rank"] for seen in ranks] == list(range(len(ranks)))
    assert {seen["world_size"] for seen in ranks} == {len(ranks)}
    assert {seen["device"] for seen in ranks} == {"cpu"}
    assert {seen["after"] for seen in ranks} == {(False, 0, 1)}


@pytest.mark.parametrize("total", [0, 1, 2, 7, 12])
def test_the_shares_in_order_are_the_whole_and_about_equal(ranks, total):
    shares = [seen["shards"][total] for seen in ranks]
    assert [number for share in shares for number in share] == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_every_rank_has_the_sum(ranks):
    n = len(ranks)
    for seen in ranks:
        assert seen["sum"].tolist() == [n * (n + 1) / 2, 10 * n * (n + 1) / 2]
        assert seen["integer sum"].item() == n * 2**40 + n * (n - 1) // 2


def test_every_rank_has_all_rows_in_the_order_of_the_ranks(ranks):
    expected = [[100 * r + 2 * i, 100 * r + 2 * i + 1] for r in range(len(ranks)) for i in range(2 * r)]
    for seen in ranks:
        assert seen["rows"].tolist() == expected
        assert seen["numbers"].tolist() == [r for r in range(len(ranks)) for _ in range(3 - r)]


def test_the_statistics_are_those_of_one_process(ranks, alone):
    features, _ = features_and_logits()
    np.testing.assert_allclose(alone.sums["covariance"], np.cov(features.numpy(), rowvar=False), rtol=1e-9)
    for seen in ranks:
        assert seen["sums"]["num_images"] == NUM_IMAGES
        torch.testing.assert_close(seen["sums"], alone.sums, rtol=1e-9, atol=0.0)
        torch.testing.assert_close(seen["sums again"], alone.sums, rtol=1e-9, atol=0.0)


def test_the_inception_score_is_that_of_one_process(ranks, alone):
    assert 1.1 < alone.scores[0] < NUM_CLASSES
    for seen in ranks:
        assert seen["scores"] == pytest.approx(alone.scores, rel=1e-9)


def test_every_rank_has_the_least(ranks):
    for seen in ranks:
        assert seen["least"].tolist() == [0, 1 - len(ranks)]


def test_tensors_are_added_in_place_however_they_are_cut_into_messages(ranks):
    total = len(ranks) * (len(ranks) + 1) / 2
    for seen in ranks:
        *constant, images = seen["added"]
        assert [tuple(tensor.shape) for tensor in constant] == [(4,), (2, 3), (5, 5), ()]
        assert all((tensor == total).all() for tensor in constant)
        assert torch.equal(images, torch.arange(24.0).view(1, 2, 3, 4) * total)


def test_every_rank_has_the_first_ones_value(ranks):
    for seen in ranks:
        assert seen["first's"]["tensor"].tolist() == [0, 0]
        assert seen["first's"]["text"] == "of 0"


def test_all_take_the_same_way(ranks):
    assert {seen["all agree"] for seen in ranks} == {True}
    assert {seen["all but one agree"] for seen in ranks} == {False}


def test_one_vote_is_known_to_all_one_call_later(ranks):
    for seen in ranks:
        assert [stop for stop, _ in seen["votes"]] == [False, False, False, True, False, True, False]
        assert [save for _, save in seen["votes"]] == [False, True, True, True, True, False, False]


def test_gradients_are_summed_over_ranks_and_microbatches_while_others_are_computed(ranks):
    total = sum(number + 1 for number in range(len(ranks)))
    for seen in ranks:
        summed = seen["summed gradients"]
        for unused, gradients in zip((set(), {1, 4}), summed["gradients"], strict=True):
            for i, (value, gradient) in enumerate(zip(summed["parameters"], gradients, strict=True)):
                if i in unused and i != 4:
                    assert gradient is None
                else:
                    microbatches = 1 if i in unused else 2
                    assert torch.equal(gradient, 2 * value * total * microbatches)
        # The 24 numbers of the last parameter, 5 + 1, 6 + 4, and 12. Without some gradients, the first is sent on its own.
        assert [size for size, _ in summed["begun"]] == [24, 6, 10, 12, 24]


def test_a_message_is_sent_before_the_backward_pass_has_ended(ranks):
    for seen in ranks:
        sent = seen["summed gradients"]["overlap"]
        assert sent[0] == (24, 1)  # when only the last parameter had its gradient
        assert [size for size, _ in sent] == [24, 6, 10, 12]


def test_each_type_of_gradient_has_its_own_message_and_networks_are_freed(ranks):
    total = sum(number + 1.0 for number in range(len(ranks)))
    for seen in ranks:
        for gradient, dtype in zip(seen["summed gradients"]["mixed"], (torch.float64, torch.float32), strict=True):
            assert torch.equal(gradient, torch.full((2,), total, dtype=dtype))
        assert seen["summed gradients"]["freed"]


def test_parameters_that_autograd_reaches_without_a_gradient_keep_none(ranks):
    total = torch.full((2,), sum(number + 1.0 for number in range(len(ranks))))
    for seen in ranks:
        first, undefined, last = seen["summed gradients"]["undefined"]
        assert undefined is None
        assert torch.equal(first, total)
        assert torch.equal(last, total)


def test_divided_weights_train_sample_and_are_saved_as_whole_ones(ranks):
    numbers = sum(each.numel() for each in Sharded().parameters())
    for number, seen in enumerate(ranks):
        found = seen["divided weights"]
        assert found["norms"][0] == pytest.approx(found["norms"][1], rel=1e-12)
        assert min(found["norms"][1]) > 0.05  # clipped
        for sampled, expected in zip(*found["sampled"], strict=True):
            torch.testing.assert_close(sampled, expected, rtol=1e-9, atol=1e-12)
        assert found["part"] <= 1.25 * numbers / len(ranks)
        if number == 0:
            saved, expected = map(tensors, found["state"])
            assert saved.keys() == expected.keys()
            for name, tensor in expected.items():
                torch.testing.assert_close(saved[name], tensor, rtol=1e-9, atol=1e-12, msg=name)
            for name, tensor in tensors(found["state"][1]["method"]).items():
                assert torch.equal(tensors(found["restored"])[name], tensor)


def test_frozen_parts_keep_their_bits_and_the_others_are_trained_as_by_one_process(ranks):
    for seen in ranks:
        found = seen["frozen parts"]
        for name, start in found["start"].items():
            together, alone = found["together"][name], found["alone"][name]
            if name.startswith(("generator.layers.0.", "generator.layers.1.", "discriminator.features.")):
                assert torch.equal(together, start), name
                assert torch.equal(alone, start), name
            elif name.endswith((".weight", ".bias")):
                assert not torch.equal(together, start), name
                torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)


def test_statistics_of_batch_norm_are_averaged_also_where_a_forward_pass_follows(ranks):
    norms = [nn.BatchNorm1d(2) for _ in ranks]
    for turn in range(2):
        for number, norm in enumerate(norms):
            for shift in range(2):
                norm(torch.tensor([[0.0, 1.0], [2.0, 5.0]]) * (number + 1) + shift)
        for name in ("running_mean", "running_var"):
            mean = sum(getattr(norm, name) for norm in norms) / len(norms)
            for norm in norms:
                getattr(norm, name).copy_(mean)
            for seen in ranks:
                found = seen["averaged statistics"][turn][name == "running_var"]
                torch.testing.assert_close(found, mean, rtol=1e-6, atol=1e-7)
    for seen in ranks:
        for one, other in zip(*seen["averaged statistics"][1:], strict=True):
            assert torch.equal(one, other)


def test_all_fail_where_one_does_and_say_what_it_said(ranks):
    for number, seen in enumerate(ranks):
        own = number == 1
        expected = "OSError: " if own else "AnotherProcessError: process 1: "
        assert seen["failure of the second"] == expected + "no such folder on this host"


def test_a_bug_brings_its_traceback_to_the_other_ranks(ranks):
    for number, seen in enumerate(ranks):
        if number == 1:
            assert seen["bug of the second"] == "its own"
        else:
            assert seen["bug of the second"].startswith("Traceback")
            assert "in bug_of_the_second" in seen["bug of the second"]


def test_tensors_are_copied_from_the_first_rank_in_their_own_memory_format(ranks):
    for seen in ranks:
        images, count = seen["copied"]
        assert torch.equal(images, torch.arange(24.0).view(1, 2, 3, 4))
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert count.item() == 0


def test_alone_a_failure_is_ones_own():
    with pytest.raises(KeyError), raise_on_any_rank():
        raise KeyError("x")


def test_the_first_rank_of_a_host_goes_first(ranks):
    assert [seen["files of the first"] for seen in ranks] == [False] + [True] * (len(ranks) - 1)


def test_alone_a_vote_is_known_at_once():
    vote = Vote(1)
    assert [vote.cast(yes) for yes in (False, True, False)] == [[False], [True], [False]]
    assert vote.wait() == [False]


def test_a_sum_leaves_its_argument_alone(ranks):
    for r, seen in enumerate(ranks):
        assert seen["what was summed"].tolist() == [r + 1.0, 10.0 * (r + 1)]


def test_the_inception_score_can_be_requested_again(ranks, alone):
    for seen in ranks:
        assert seen["scores again"] == pytest.approx(alone.scores, rel=1e-9)


def test_a_collected_summary_is_that_of_one_process(ranks, alone):
    features, logits = features_and_logits()
    assert torch.equal(alone.collector["features"], features[KEPT].float())
    for seen in ranks:
        found = seen["collector"]
        torch.testing.assert_close(found["moments"], alone.collector["moments"], rtol=1e-9, atol=0.0)
        assert torch.equal(found["features"], features[KEPT].float())
        assert found["positions"].tolist() == KEPT.tolist()
        assert torch.equal(found["logits"], logits[KEPT])
        assert torch.equal(found["predictions"], logits.argmax(dim=1))
        assert found["labels"].tolist() == list(range(NUM_IMAGES))
        assert found["scores"].keys() == alone.collector["scores"].keys() == {1, 4}
        for splits, score in found["scores"].items():
            assert score == pytest.approx(alone.collector["scores"][splits], rel=1e-9, abs=1e-12)


def test_one_image_on_all_ranks_is_refused_on_each(ranks):
    assert {seen["too few images"] for seen in ranks} == {"1 images are too few for a covariance: evaluate at least 2"}


def test_every_rank_measures_what_one_process_measures(ranks, alone):
    expected = alone.evaluation.values
    assert {key.split("_")[0] for key in expected} >= {"fd41", "kd41", "precision41", "is41", "accuracy41", "reconstruction"}
    assert all(np.isfinite(value) for value in expected.values())
    for seen in ranks:
        assert seen["values"] == pytest.approx(expected, rel=1e-6, abs=1e-12)
        assert seen["values"] == ranks[0]["values"]


def test_every_rank_has_the_intervals_of_one_process(ranks, alone):
    expected = alone.evaluation.intervals
    assert {key.split("_")[0] for key in expected} >= {"fd41", "is41", "accuracy41"}
    for seen in ranks:
        assert seen["intervals"].keys() == expected.keys()
        for key, bounds in expected.items():
            assert seen["intervals"][key] == pytest.approx(bounds, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(
    ("device_name", "variables", "message"),
    [("cpu", {}, "WORLD_SIZE"), ("mps", {"LOCAL_RANK": "0"}, "device=mps"), ("cuda:1", {"LOCAL_RANK": "0"}, "device=cuda:1")],
)
def test_what_several_processes_cannot_do_is_refused_before_they_wait_for_each_other(
    device_name, variables, message, monkeypatch
):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with raises(ConfigError, word=message), processes_of_torchrun(device_name):
        pass
    assert not dist.is_initialized()
