"""Initial weights: the recipe's distributions, drawn alike by every layout and device."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from trainer.model.init import STD, initial_values, initialize
from trainer.model.presets import model_config
from trainer.model.transformer import HybridModel

MATRIX = "blocks.0.sublayers.1.op.up_proj.weight"
LAYOUTS = [(1, 1), (2, 1), (1, 2), (2, 2), (1, 3), (1, 5), (2, 8)]


def whole_model() -> HybridModel:
    model = HybridModel(model_config("olmo_hybrid_tiny"))
    model.init_weights(7)
    return model


def drawn_shards(replicas: int, shards: int, rank: int) -> dict[str, torch.Tensor]:
    """What this rank of a gang holds after a start from meta, without the other ranks."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=replicas * shards)
    try:
        # torch keeps equal meshes over process groups, with the coordinates of the first: names set them apart.
        names = (f"replicate_{rank}", f"shard_{rank}")
        mesh = init_device_mesh("cpu", (replicas, shards), mesh_dim_names=names)
        with torch.device("meta"):
            model = HybridModel(model_config("olmo_hybrid_tiny"))
        for module in (*model.blocks, model):
            fully_shard(module, mesh=mesh)
        model.to_empty(device="cpu").init_weights(7)
        return {name: p.detach().to_local().clone() for name, p in model.named_parameters()}
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(("replicas", "shards"), LAYOUTS)
def test_shards_of_every_layout_make_up_the_same_model(replicas: int, shards: int) -> None:
    expected = dict(whole_model().named_parameters())
    drawn = [drawn_shards(replicas, shards, rank) for rank in range(replicas * shards)]
    for replica in range(replicas):
        held = drawn[replica * shards : (replica + 1) * shards]
        for name, parameter in expected.items():
            assert torch.equal(torch.cat([shard[name] for shard in held]), parameter), name


@given(st.lists(st.integers(0, 700_000), min_size=2, max_size=5, unique=True))
def test_any_stretch_equals_that_of_the_whole(cuts: list[int]) -> None:
    """Also over the ends of the chunks in which a parameter is drawn."""
    begin, *ends = sorted(cuts)
    whole = initial_values(MATRIX, 3, begin, ends[-1] - begin)
    parts = []
    for end in ends:
        parts.append(initial_values(MATRIX, 3, begin, end - begin))
        begin = end
    assert torch.equal(torch.cat(parts), whole)


@pytest.fixture(scope="module")
def million() -> torch.Tensor:
    return initial_values(MATRIX, 1, 0, 1_000_000).double() / STD


def phi(x: float) -> float:
    return math.erf(x / math.sqrt(2)) / 2


def test_matrices_have_the_moments_of_a_normal_cut_at_three_deviations(million: torch.Tensor) -> None:
    """Each within five of its own standard errors at a million draws; exact moments by the density at the cut."""
    density = math.exp(-4.5) / math.sqrt(2 * math.pi)
    mass = 2 * phi(3)
    variance = 1 - 6 * density / mass
    fourth = 3 * variance - 54 * density / mass
    assert million.abs().max() <= 3.0000001
    assert million.mean().item() == pytest.approx(0, abs=5e-3)
    assert million.square().mean().item() == pytest.approx(variance, abs=5 * math.sqrt(fourth / 1e6))
    assert million.pow(3).mean().item() == pytest.approx(0, abs=5 * 3e-3)
    assert million.pow(4).mean().item() == pytest.approx(fourth, abs=5 * 8e-3)


def test_matrices_follow_the_cut_normal_everywhere(million: torch.Tensor) -> None:
    """Kolmogorov-Smirnov: the distribution function errs by less than 1.95 / sqrt(n), the quantile 0.999 of its law."""
    ordered = million.sort().values
    exact = torch.special.erf(ordered / math.sqrt(2)) / (4 * phi(3)) + 0.5
    empirical = torch.arange(1, len(ordered) + 1, dtype=torch.float64) / len(ordered)
    assert (exact - empirical).abs().max() < 1.95e-3


def test_elements_are_not_correlated(million: torch.Tensor) -> None:
    """Neighbours in a row, in a column, of another parameter, of another seed: five standard errors."""
    others = [initial_values(MATRIX.replace("up", "down"), 1, 0, 1_000_000), initial_values(MATRIX, 2, 0, 1_000_000)]
    pairs = [(million[:-lag], million[lag:]) for lag in (1, 2, 3840, 4096, 1 << 18)]
    pairs += [(million, other.double() / STD) for other in others]
    assert all(abs((a * b).mean().item()) < 5 / math.sqrt(len(a)) for a, b in pairs)
    assert len(million.unique()) > 0.9 * len(million)


def test_vectors_follow_the_recipe() -> None:
    assert torch.equal(initial_values("blocks.0.sublayers.0.norm.weight", 1, 5, 4), torch.ones(4))
    a = initial_values("blocks.0.sublayers.0.op.A_log", 1, 0, 50_000).exp()
    assert 0 < a.min() < 0.01
    assert 15.99 < a.max() <= 16.0001
    assert a.mean().item() == pytest.approx(8, abs=0.1)
    dt = F.softplus(initial_values("blocks.0.sublayers.0.op.dt_bias", 1, 0, 50_000))
    assert dt.min() >= 0.9999e-3
    assert dt.max() <= 1.0001e-1
    assert dt.log().mean().item() == pytest.approx(math.log(1e-2), abs=0.03)


def test_a_model_of_bfloat16_holds_the_rounded_values() -> None:
    model = whole_model().to(torch.bfloat16)
    model.init_weights(7)
    assert all(
        torch.equal(p, q.to(torch.bfloat16))
        for p, q in zip(model.parameters(), whole_model().parameters(), strict=True)
    )


@pytest.fixture
def lone_mesh() -> Iterator[object]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


def test_sharding_of_another_dimension_is_refused(lone_mesh: object) -> None:
    layer = torch.nn.Linear(4, 4, bias=False)
    layer.weight = torch.nn.Parameter(distribute_tensor(layer.weight.data, lone_mesh, [Shard(1)], src_data_rank=None))
    with pytest.raises(NotImplementedError, match="dimension 0"):
        initialize(layer, 1)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [MATRIX, "blocks.0.sublayers.0.op.A_log", "blocks.0.sublayers.0.op.dt_bias"])
def test_a_gpu_draws_the_same_bits(name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    on_gpu = initial_values(name, 5, 12_345, 3_000_000, "cuda")
    assert torch.equal(on_gpu.cpu(), initial_values(name, 5, 12_345, 3_000_000))
