"""Evaluations run alone or in slots: always the network's own answer, and the same bits whatever is evaluated beside them."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from model.errors import ModelError
from model.inference.network_runner import BatchedEvaluator, Evaluation, ThreadedEvaluator, evaluator_for
from model.network.unet import AccompanimentUNet, UNetConfig, paper

NETWORK = UNetConfig(channels=(16, 32), vocal_blocks=(1, 1), heads=2, head_channels=16, time_channels=32, bottleneck_blocks=1)


@pytest.fixture(scope="module")
def unet() -> AccompanimentUNet:
    return network(NETWORK)


def network(config: UNetConfig) -> AccompanimentUNet:
    torch.manual_seed(0)
    unet = AccompanimentUNet(config).eval().requires_grad_(False)
    torch.nn.init.normal_(unet.output.weight, std=0.05)
    torch.nn.init.normal_(unet.null_vocal_C)
    return unet


def latent(seed: int, frames: int) -> Tensor:
    return torch.randn(1, 64, frames, generator=torch.Generator().manual_seed(seed))


def batched(unet: AccompanimentUNet, slots: int) -> BatchedEvaluator:
    """On a CPU: the slots and padding of an accelerator's evaluator, launched kernel by kernel."""
    return BatchedEvaluator(unet, slots, lengths=(16, 64), bfloat16=False)


@torch.inference_mode()
def answer(unet: AccompanimentUNet, x_BCT: Tensor, t: int, vocal_BCT: Tensor | None) -> Tensor:
    frames = x_BCT.shape[2]
    return unet(x_BCT, torch.tensor([t]), unet.encode_vocal(unet.null_vocal(frames) if vocal_BCT is None else vocal_BCT))[0]


@pytest.fixture
def outside() -> Iterator[None]:
    """torch's own number of threads, put back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", ["threaded", "batched"])
def test_each_evaluation_is_the_network_s_answer(unet: AccompanimentUNet, kind: str) -> None:
    evaluator = ThreadedEvaluator(unet, threads=2) if kind == "threaded" else batched(unet, 4)
    wanted, asked = [], []
    for seed, (frames, t) in enumerate([(10, 799), (16, 0), (17, 400), (64, 40), (10, 300), (64, 799), (33, 5), (40, 1), (50, 2), (60, 3)]):
        sung_BCT = None if seed == 4 else latent(100 + seed, frames)
        x_BCT = latent(seed, frames)
        (features,) = evaluator.encode([sung_BCT], frames)  # in all three in 4 slots of 16 frames, and seven in those of 64
        asked.append(Evaluation(x_CT=x_BCT[0], t=t, vocal=features))
        wanted.append(answer(unet, x_BCT, t, sung_BCT))
    for made, right in zip(evaluator(asked), wanted, strict=True):
        assert made.shape == right.shape
        torch.testing.assert_close(made, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["threaded", "batched"])
def test_the_same_bits_alone_and_among_sixteen(unet: AccompanimentUNet, kind: str) -> None:
    evaluator = ThreadedEvaluator(unet, threads=2) if kind == "threaded" else batched(unet, 16)
    features = evaluator.encode([latent(100 + seed, 30) for seed in range(16)], 30)
    asked = [Evaluation(x_CT=latent(seed, 30)[0], t=50 * seed, vocal=features[seed]) for seed in range(16)]
    alone = [evaluator([one])[0] for one in asked]
    for together in (evaluator(asked), evaluator(asked[::-1])[::-1]):
        assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def test_a_slot_takes_the_features_of_whoever_is_in_it(unet: AccompanimentUNet) -> None:
    evaluator = batched(unet, 2)
    x_BCT = latent(0, 16)
    one, other = evaluator.encode([latent(1, 16), latent(2, 16)], 16)
    first = evaluator([Evaluation(x_CT=x_BCT[0], t=9, vocal=one)])[0]
    second = evaluator([Evaluation(x_CT=x_BCT[0], t=9, vocal=other)])[0]
    assert float((first - second).abs().max()) > 1e-4
    assert torch.equal(first, evaluator([Evaluation(x_CT=x_BCT[0], t=9, vocal=one)])[0])


def test_a_short_window_does_not_hear_who_was_in_its_slot(unet: AccompanimentUNet) -> None:
    evaluator = batched(unet, 1)
    long, short = evaluator.encode([latent(1, 60)], 60)[0], evaluator.encode([latent(2, 40)], 40)[0]
    fresh = evaluator([Evaluation(x_CT=latent(3, 40)[0], t=9, vocal=short)])[0]
    evaluator([Evaluation(x_CT=latent(4, 60)[0], t=9, vocal=long)])
    assert torch.equal(fresh, evaluator([Evaluation(x_CT=latent(3, 40)[0], t=9, vocal=short)])[0])


def test_bfloat16_is_close(unet: AccompanimentUNet) -> None:
    """Autocast as on an accelerator: 5% of the velocity's deviation; features are as rough as what is made of them."""
    evaluator, x_BCT, sung_BCT = BatchedEvaluator(unet, 2, lengths=(64,), bfloat16=True), latent(0, 50), latent(1, 50)
    made = evaluator([Evaluation(x_CT=x_BCT[0], t=300, vocal=evaluator.encode([sung_BCT], 50)[0])])[0]
    right = answer(unet, x_BCT, 300, sung_BCT)
    assert made.dtype == torch.float32
    assert 0 < float((made - right).square().mean().sqrt()) < 0.05 * float(right.std())


@pytest.mark.usefixtures("outside")
def test_any_number_of_threads_gives_the_same_bits() -> None:
    """At full size, where libraries do split their sums among threads, and whatever number torch has outside."""
    unet, found = network(paper()), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        evaluator = ThreadedEvaluator(unet)
        features = evaluator.encode([latent(1, 1_024), None], 1_024)
        found.append(evaluator([Evaluation(x_CT=latent(2, 1_024)[0], t=300, vocal=one) for one in features]))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.usefixtures("outside")
def test_a_worker_does_not_split_its_work_and_others_do(unet: AccompanimentUNet) -> None:
    torch.set_num_threads(2)
    evaluator = ThreadedEvaluator(unet, threads=3)
    evaluator([Evaluation(x_CT=latent(2, 32)[0], t=3, vocal=evaluator.encode([None], 32)[0])] * 6)
    assert {evaluator._pool.submit(torch.get_num_threads).result() for _ in range(20)} == {1}
    assert torch.get_num_threads() == 2
    with ThreadPoolExecutor(1) as elsewhere:
        assert elsewhere.submit(torch.get_num_threads).result() == 2


def test_workers_end_with_their_evaluator(unet: AccompanimentUNet) -> None:
    others = set(threading.enumerate())
    evaluator = ThreadedEvaluator(unet, threads=2)
    workers = [thread for thread in threading.enumerate() if thread not in others]
    assert len(workers) == 2
    del evaluator
    for worker in workers:
        worker.join(timeout=30)
        assert not worker.is_alive()


def test_refusals(unet: AccompanimentUNet) -> None:
    with pytest.raises(ModelError, match="threads=0"):
        ThreadedEvaluator(unet, threads=0)
    for slots in (0, 6):
        with pytest.raises(ModelError, match=f"slots={slots}"):
            BatchedEvaluator(unet, slots)
    for kind in (ThreadedEvaluator, BatchedEvaluator):
        with pytest.raises(ModelError, match="no CUDA graphs"):
            kind(unet, execution="graph")
    with pytest.raises(ModelError, match="65 frames"):
        batched(unet, 2).encode([latent(1, 65)], 65)
    assert isinstance(evaluator_for(unet), ThreadedEvaluator)
