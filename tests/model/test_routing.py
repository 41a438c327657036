"""Masks, counts and the balance loss of one pass."""

import pytest
import torch

import mote
from mote.errors import MoteError, TrainingError
from mote.model.block import blocks, context_of
from mote.model.router import Route
from mote.model.routing import RoutingContext


def _route(expert, num_experts=4, gate=1.0):
    p = torch.full((len(expert), num_experts), 1 / num_experts)
    expert = torch.tensor(expert)[:, None]
    return Route(p, expert, torch.full(expert.shape, gate))


def test_perfect_balance_is_one_and_collapse_is_the_probability_times_experts():
    context = RoutingContext()
    context.record(0, _route([0, 1, 2, 3]), (1, 4))
    assert float(context.balance_loss()) == pytest.approx(1.0)
    collapsed = Route(torch.tensor([[1.0, 0, 0, 0]] * 3), torch.zeros(3, 1, dtype=torch.long), torch.ones(3, 1))
    context.record(1, collapsed, (1, 3))
    assert float(context.balance_loss()) == pytest.approx(1.0 + 4.0)  # summed over layers


def test_padding_counts_nowhere_and_image_tokens_count_apart():
    context = RoutingContext()
    token = torch.tensor([[0, 1, 1], [1, 1, 0]])
    image = torch.tensor([[1, 1, 0], [0, 0, 1]])  # padding may look like an image token: still not counted
    with context.masks(token, image):
        context.enter_decoder(torch.nn.Identity(), (), {})
        context.record(0, _route([0, 1, 2, 2, 2, 3]), (2, 3))
    (layer,) = context.statistics().values()
    assert layer.load_image == [0, 1, 0, 0]
    assert layer.load_text == [0, 0, 3, 0]
    assert layer.load == [0, 0.25, 0.75, 0]
    assert layer.tokens == 4
    assert layer.entropy == pytest.approx(torch.log(torch.tensor(4.0)).item())
    assert layer.mean_gate == 1.0


def test_mask_longer_than_the_input_uses_its_last_columns_and_a_wrong_one_is_refused():
    context = RoutingContext()
    mask = torch.tensor([[1, 1, 0, 1]])
    context.enter_decoder(torch.nn.Identity(), (), {"attention_mask": mask})
    context.record(0, _route([0, 1]), (1, 2))
    assert context.statistics()[0].load_text == [0, 1, 0, 0]
    context.enter_decoder(torch.nn.Identity(), (), {"attention_mask": mask})
    with pytest.raises(TrainingError, match="attention mask"):
        context.record(0, _route([0, 1]), (2, 1))


def test_all_padding_gives_zero_not_nan():
    context = RoutingContext()
    context.enter_decoder(torch.nn.Identity(), (), {"attention_mask": torch.zeros(1, 2)})
    context.record(0, _route([0, 1]), (1, 2))
    assert float(context.balance_loss()) == 0.0


def test_nothing_recorded_is_an_error_to_sum():
    with pytest.raises(TrainingError, match="training mode"):
        RoutingContext().balance_loss()


def test_loss_includes_the_balance_loss_once(family, tiny, inputs):
    model, batch = mote.upcycle(tiny(family)), inputs(family)
    context = context_of(model)
    plain = model(**batch, labels=batch["input_ids"]).loss  # eval mode: no balance loss
    model.train()
    trained = model(**batch, labels=batch["input_ids"]).loss
    expected = plain + context.balance_coefficient * context.balance_loss()
    torch.testing.assert_close(trained, expected)
    as_tuple = model(**batch, labels=batch["input_ids"], return_dict=False)[0]
    torch.testing.assert_close(as_tuple, expected)


def test_masks_reach_the_blocks_by_themselves(tiny, inputs):
    model, batch = mote.upcycle(tiny("aya_vision")), inputs("aya_vision")
    model.train()
    model(**batch)
    for layer in context_of(model).statistics().values():
        assert layer.tokens == 18  # 20 less 2 of padding
        assert sum(layer.load_image) == 8
        assert sum(layer.load_text) == 10


def test_balance_loss_is_weighted_by_the_share_of_tokens_under_accumulation(tiny, inputs):
    model, batch = mote.upcycle(tiny("llama")), inputs("llama")
    model.train()
    labels = batch["input_ids"]
    whole = model(**batch, labels=labels, num_items_in_batch=torch.tensor(labels[:, 1:].numel())).loss
    rest = model(**batch, labels=labels, num_items_in_batch=torch.tensor(2 * labels[:, 1:].numel())).loss
    torch.testing.assert_close(rest * 2, whole)


def _router_gradients(model, batch):
    model.zero_grad()
    model.train()
    model(**batch, labels=batch["input_ids"]).loss.backward()
    return [block.router.weight.grad.clone() for block in blocks(model)]


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
def test_gradient_checkpointing_changes_no_gradient(tiny, inputs):
    model, batch = mote.upcycle(tiny("aya_vision")), inputs("aya_vision")
    expected = _router_gradients(model, batch)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for gradient, reference in zip(_router_gradients(model, batch), expected, strict=True):
        torch.testing.assert_close(gradient, reference)
    assert [layer.tokens for layer in context_of(model).statistics().values()] == [18, 18]


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
def test_reentrant_checkpointing_is_refused(tiny, inputs):
    model, batch = mote.upcycle(tiny("llama")), inputs("llama")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    with pytest.raises(TrainingError, match="use_reentrant"):
        _router_gradients(model, batch)


def test_collect_sums_over_passes_in_eval_mode(tiny, inputs):
    model, batch = mote.upcycle(tiny("llama")), inputs("llama")
    context = context_of(model)
    with torch.no_grad(), context.collect() as collected:
        model(**batch)
        model(**batch)
        with pytest.raises(MoteError, match="already"), context.collect():
            pass
    assert collected.statistics()[0].tokens == 36
    with torch.no_grad():
        model(**batch)
    assert collected.statistics()[0].tokens == 36  # closed


def test_a_copied_model_has_a_context_of_its_own(tiny, inputs):
    import copy

    model = mote.upcycle(tiny("llama"))
    twin = copy.deepcopy(model).train()
    twin(**inputs("llama"))
    assert context_of(twin).statistics()
    assert not context_of(model).statistics()
