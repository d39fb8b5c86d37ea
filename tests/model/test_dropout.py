from __future__ import annotations

import itertools

import msgspec
import pytest
import torch
from torch import Tensor

from narrows.kernels.load import load
from narrows.model.dropout import Draws, dropped, elsewhere
from narrows.model.initial import initialise
from narrows.model.transformer import Transformer
from narrows.spec.model import ModelSpec, gpt2

CPU = torch.device("cpu")
B, T, D = 8, 128, 256


def kept(draws: Draws, *, place: int = 0, share: float = 0.1) -> Tensor:
    """Which of ones are not dropped [B,T,D]."""
    numbers_BT = elsewhere(draws.numbers(B, (0, T), CPU), place)
    return dropped(torch.ones(B, T, D), numbers_BT, share) != 0


def correlation(one: Tensor, other: Tensor) -> float:
    """Times √n: of independent masks it is normal of deviation 1."""
    pair = torch.stack([one.flatten().double(), other.flatten().double()])
    return float(torch.corrcoef(pair)[0, 1]) * one.numel() ** 0.5


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_share_is_dropped_and_the_rest_grows(share: float) -> None:
    mask = kept(Draws(1), share=share)
    deviation = (share * (1 - share) / mask.numel()) ** 0.5
    assert abs(float(mask.double().mean()) - (1 - share)) < 4 * deviation
    out = dropped(torch.full((B, T, D), 2.0), Draws(1).numbers(B, (0, T), CPU), share)
    torch.testing.assert_close(out[mask], torch.full_like(out[mask], 2.0 / (1 - share)))


def test_gradients_pass_where_values_do() -> None:
    x = torch.randn(B, T, D, requires_grad=True)
    out = dropped(x, Draws(2).numbers(B, (0, T), CPU), 0.3)
    out.backward(torch.ones_like(out))
    assert x.grad is not None
    torch.testing.assert_close(x.grad * x.detach(), out.detach())


def test_seeds_sequences_places_and_columns_are_independent() -> None:
    first = kept(Draws(7))
    others = [
        kept(Draws(8)), kept(Draws(7 + 2**40)), kept(Draws(7, B)), kept(Draws(7), place=1),
        kept(Draws(7), place=4), first.roll(1, 0), first.roll(1, 1), first.roll(1, 2),
        first.roll(7, 2),
    ]  # fmt: skip
    for other in others:
        assert abs(correlation(first, other)) < 4.5


def test_columns_are_pairwise_independent() -> None:
    """In root mean square over all pairs their correlation is that of as many coin tosses."""
    columns_DM = kept(Draws(3)).flatten(0, 1).T.double()
    between_DD = torch.corrcoef(columns_DM) - torch.eye(D)
    assert float(between_DD.square().mean().sqrt()) * (B * T) ** 0.5 == pytest.approx(1.0, abs=0.03)


def test_a_token_drops_the_same_wherever_it_is_computed() -> None:
    whole = kept(Draws(4))
    later = Draws(4, 2).numbers(3, (32, 16), CPU)
    assert (dropped(torch.ones(3, 16, D), later, 0.1) != 0).equal(whole[2:5, 32:48])


def spec(**given: object) -> ModelSpec:
    plain = gpt2(layers=2, width=32, heads=2, vocabulary=50, context=16, dropout=0.4)
    return msgspec.structs.replace(plain, **given)


def test_layers_and_sites_of_a_model_drop_apart_from_one_another() -> None:
    model = Transformer(spec(), load("torch")).train()
    place = model._place((0, 16), torch.zeros(B, 16, 32), None)
    masks = [
        place.of_layer(layer).dropped(torch.ones(B, 16, D), site, 0.4) != 0
        for layer in (-1, 0, 1) for site in (0, 1, 2, 3)
    ]  # fmt: skip
    for one, other in itertools.combinations(masks, 2):
        assert abs(correlation(one, other)) < 4.5


def test_a_micro_batch_draws_as_its_sequences_do_alone() -> None:
    model = Transformer(spec(), load("torch")).train()
    initialise(model, 1)
    tokens_BT = torch.randint(0, 50, (4, 16), generator=torch.Generator().manual_seed(1))
    model.draws = Draws(9)
    together = model(tokens_BT)
    model.draws = Draws(9, 2)
    torch.testing.assert_close(model(tokens_BT[2:]), together[2:])
    assert not torch.allclose(model(tokens_BT[:2]), together[:2])
