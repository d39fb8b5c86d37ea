from __future__ import annotations

import torch

from narrows.parallel.kept import Kept


def test_the_peak_is_of_what_lives_at_once() -> None:
    kept = Kept()
    weight = torch.zeros(1000)
    kept.name("weights", weight)
    for size in (500, 2000, 100):
        made = torch.zeros(size)
        kept.see(made, "zeros")
        del made
    peak, makers = kept.peak()
    assert (peak.weights, peak.activations, peak.peak) == (4000, 8000, 12000)
    assert makers == {"zeros": 8000}


def test_a_view_is_no_memory() -> None:
    kept = Kept()
    whole = torch.zeros(10, 10)
    for each in (whole, whole[2:], whole.t(), whole.view(-1)):
        kept.see(each)
    assert kept.peak()[0].peak == 400


def test_a_storage_that_grows_is_a_gathered_parameter() -> None:
    kept = Kept()
    gathered = torch.zeros(100)
    kept.see(gathered)
    with kept.growing():
        gathered.untyped_storage().resize_(0)
        other = torch.zeros(50)
        kept.see(other)
        gathered.untyped_storage().resize_(400)
    peak = kept.peak()[0]
    assert (peak.workspace, peak.activations) == (400, 200)


def test_what_is_left_between_micro_batches_gets_a_name_once() -> None:
    kept = Kept()
    weight, gradient = torch.zeros(10), torch.zeros(20)
    kept.name("weights", weight)
    kept.see(gradient)
    kept.name_all("gradients")
    peak = kept.peak()[0]
    assert (peak.weights, peak.gradients, peak.activations) == (40, 80, 0)
