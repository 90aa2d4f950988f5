"""Pruning, by hand: which weights, neurons and layers go."""

from __future__ import annotations

import pytest
import torch

from llmlab.errors import Refused
from llmlab.models.decoder import Decoder
from llmlab.runtime.calibration import InputCollector, calibration_batch, layer_influence, walk_layers
from llmlab.runtime.technique import make
from llmlab.techniques.weights.sparsity import lowest
from tests import tiny
from tests.laws import laws

CALIBRATION = tiny.text(300)


def test_the_lowest_of_each_row() -> None:
    scores = torch.tensor([[4.0, 1, 3, 2], [10, 40, 30, 20]])
    assert lowest(scores, 0.5, "unstructured").tolist() == [[False, True, False, True], [True, False, False, True]]
    assert lowest(scores, 0.25, "unstructured").sum(1).tolist() == [1, 1]
    assert not lowest(scores, 0.0, "unstructured").any()


def test_two_of_every_four_and_four_of_every_eight() -> None:
    scores = torch.tensor([[9.0, 8, 7, 6, 1, 2, 3, 4]])
    assert lowest(scores, 0.9, "2:4").int().tolist() == [[0, 0, 1, 1, 1, 1, 0, 0]]
    assert lowest(scores, 0.0, "4:8").int().tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4:8"])
def test_magnitude_keeps_the_large_ones_as_they_are(llama: Decoder, pattern: str) -> None:
    model = llama.private_copy()
    note = make("magnitude", ratio=0.5, pattern=pattern).apply(model, tiny.tools())
    for before, after in zip(llama.layers, model.layers, strict=True):
        for (name, a), (_, b) in zip(before.linears().items(), after.linears().items(), strict=True):
            old, new = a.dense(), b.dense()
            assert (new == 0).float().mean() == pytest.approx(0.5), name
            assert torch.equal(new[new != 0], old[new != 0])
            if pattern == "unstructured":
                gone, kept = old.abs().masked_fill(new != 0, 0), old.abs().masked_fill(new == 0, torch.inf)
                assert (gone.amax(1) <= kept.amin(1)).all()
            else:
                n, m = map(int, pattern.split(":"))
                assert ((new.view(len(new), -1, m) != 0).sum(-1) == n).all()
    assert note.startswith("50% of 0.1 million weights are zero")


def test_wanda_weighs_by_what_flows_in(llama: Decoder) -> None:
    """The first matrix of the first layer: its inputs are the normalised embeddings of the calibration text."""
    model = llama.private_copy()
    make("wanda", ratio=0.5, calibration=256).apply(model, tiny.tools(calibration=CALIBRATION))
    x = llama.layers[0].norm_mixer(llama.embedding.lookup(torch.tensor(CALIBRATION[:256])))
    score = llama.layers[0].linears()["qkv"].dense().abs() * x.square().sum(0).sqrt()
    new = model.layers[0].linears()["qkv"].dense()
    for row in (0, 17, 100):
        want = set(score[row].argsort()[:32].tolist())
        assert set((new[row] == 0).nonzero()[:, 0].tolist()) == want
    magnitude = llama.private_copy()
    make("magnitude", ratio=0.5).apply(magnitude, tiny.tools())
    assert not torch.equal(new == 0, magnitude.layers[0].linears()["qkv"].dense() == 0)


def test_wanda_calibrates_each_layer_on_the_pruned_ones_before_it(llama: Decoder) -> None:
    """What reaches the second layer is what the pruned first layer puts out."""
    model = llama.private_copy()
    norms = {}
    for block, found in walk_layers(model, CALIBRATION):
        norms[block.index] = found["qkv"].norms
        if block.index == 0:
            for _, module in block.linears().items():
                module.store(torch.zeros_like(module.dense()))
    embedded = llama.embedding.lookup(torch.tensor(CALIBRATION))
    untouched = model.layers[1].norm_mixer(embedded).square().sum(0).sqrt()  # a layer of zeros passes its input on
    assert torch.allclose(norms[1], untouched, rtol=1e-4)


def test_a_calibration_text_is_cut_into_sequences_that_do_not_see_each_other(llama: Decoder) -> None:
    first, second = tiny.text(256, seed=1), tiny.text(44, seed=2)
    together = [n["down"].squares for _, n in walk_layers(llama, [*first, *second])]
    apart = [
        a["down"].squares + b["down"].squares
        for (_, a), (_, b) in zip(walk_layers(llama, first), walk_layers(llama, second), strict=True)
    ]
    for got, want in zip(together, apart, strict=True):
        assert torch.allclose(got, want, rtol=1e-3)


def test_neuron_drop_removes_the_least_used_neurons_and_nothing_else(llama: Decoder) -> None:
    model = llama.private_copy()
    note = make("neuron-drop", ratio=0.3, calibration=256).apply(model, tiny.tools(calibration=CALIBRATION))
    assert note == "32 of 96 neurons removed in each of 4 layers"
    (block, norms) = next(iter(walk_layers(llama, CALIBRATION[:256])))
    score = norms["down"].norms * block.linears()["down"].dense().norm(dim=0)
    rows = score.argsort(descending=True)[:64].sort().values
    small = model.layers[0]
    assert torch.equal(small.linears()["down"].dense(), block.linears()["down"].dense()[:, rows])
    gate, up = block.linears()["gate_up"].dense().chunk(2)
    assert torch.equal(small.linears()["gate_up"].dense(), torch.cat([gate[rows], up[rows]]))
    assert llama.nbytes - model.nbytes == 4 * 32 * 3 * 64 * 4


def test_a_neuron_that_does_nothing_is_the_first_to_go(llama: Decoder) -> None:
    """Removing neurons whose column of down is zero changes no logit."""
    model = llama.private_copy()
    for block in model.layers:
        down = block.linears()["down"].dense()
        down[:, 5:37] = 0
        block.linears()["down"].store(down)
    tokens = tiny.text(30)
    want = laws.logits(model, tokens, [30])
    make("neuron-drop", ratio=0.34).apply(model, tiny.tools())
    assert model.layers[0].linears()["down"].dense().shape == (64, 64)
    assert torch.allclose(laws.logits(model, tokens, [30]), want, atol=1e-4)


def test_influence_of_a_layer_that_passes_its_input_on_is_nought(llama: Decoder) -> None:
    model = llama.private_copy()
    block = model.layers[2]
    for module in (block.linears()["out"], block.linears()["down"]):
        module.store(torch.zeros_like(module.dense()))
    scores = layer_influence(model, CALIBRATION)
    assert scores[2] == pytest.approx(0, abs=1e-5)
    assert min(scores[:2] + scores[3:]) > 0.01


def test_layer_drop_removes_the_layer_of_least_influence(llama: Decoder) -> None:
    model = llama.private_copy()
    block = model.layers[2]
    for module in (block.linears()["out"], block.linears()["down"]):
        module.store(torch.zeros_like(module.dense()))
    tokens = tiny.text(30)
    want, rest = laws.logits(model, tokens, [30]), [model.layers[i] for i in (0, 1, 3)]
    note = make("layer-drop", count=1).apply(model, tiny.tools())
    assert note == "1 of 4 layers removed (2)"
    assert list(model.layers) == rest
    assert [b.index for b in model.layers] == [0, 1, 2]
    assert torch.allclose(laws.logits(model, tokens, [30]), want, atol=1e-4)
    assert [b.index for b in llama.layers] == [0, 1, 2, 3]


def test_a_windowed_layer_keeps_its_window() -> None:
    model = tiny.decoder("qwen2-window").private_copy()
    make("layer-drop", count=1).apply(model, tiny.tools())
    kept = {id(b): b.mixer.window for b in model.layers}
    assert sorted(w or 0 for w in kept.values()) in ([0, 7, 7], [0, 0, 7])


def test_removing_every_layer_is_refused(llama: Decoder) -> None:
    with pytest.raises(Refused, match="cannot remove 4 of 4 layers"):
        make("layer-drop", count=4).apply(llama.private_copy(), tiny.tools())


@pytest.mark.parametrize("id", ["magnitude", "wanda", "neuron-drop", "layer-drop"])
@pytest.mark.parametrize("weights", ["dense-bf16", "int8", "int4", "nf4"])
def test_transforms_work_in_every_format(id: str, weights: str) -> None:
    stack = laws.Stack([laws.sharp(id)])
    model = laws.changed(tiny.decoder("llama", weights), stack, tiny.tools())
    assert model.weights == weights
    assert laws.logits(model, tiny.text(20), [20]).isfinite().all()
    before = tiny.decoder("llama", weights).nbytes
    assert (model.nbytes < before) == (id in ("neuron-drop", "layer-drop"))


def test_the_collector_has_what_gptq_and_awq_ask_for(llama: Decoder) -> None:
    """XᵀX, Σx² and max |x| of a matrix's inputs, over two passes of the same layer."""
    tokens = CALIBRATION[:64]
    x = llama.layers[0].norm_mixer(llama.embedding.lookup(torch.tensor(tokens)))
    (_, found) = next(iter(walk_layers(llama, tokens, gram=True)))
    assert found["qkv"].gram is not None
    assert torch.allclose(found["qkv"].gram, x.t() @ x, rtol=1e-4, atol=1e-3)
    assert torch.allclose(found["qkv"].squares, x.square().sum(0), rtol=1e-4)
    assert torch.allclose(found["qkv"].absmax, x.abs().amax(0))
    with InputCollector(llama.layers[0]) as twice, torch.inference_mode():
        for _ in range(2):
            llama.run_layers(llama.embedding.lookup(torch.tensor(tokens)), calibration_batch(llama, tokens), 0, 1)
    assert torch.allclose(twice["qkv"].squares, 2 * found["qkv"].squares, rtol=1e-4)
    assert twice["qkv"].gram is None
    assert not any(m._forward_pre_hooks for m in llama.layers[0].linears().values())
