"""What forgetting shows in: the loss of held-out answers, and perplexity on plain text, before and after training."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from mote.train.batches import Collator, ConversationDataset
from mote.train.trainer import answer_logits


@torch.no_grad()
def held_out_loss(model: Any, conversations: ConversationDataset, collate: Collator, batch_size: int) -> float:
    """Mean cross-entropy in nats per answer token of `conversations`, eval mode."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    total, count = 0.0, 0
    for start in range(0, len(conversations), batch_size):
        stop = min(start + batch_size, len(conversations))
        batch = collate([conversations[i] for i in range(start, stop)])
        logits, targets = answer_logits(model, {name: tensor.to(device) for name, tensor in batch.items()})
        total += float(functional.cross_entropy(logits, targets, reduction="sum"))
        count += targets.numel()
    model.train(was_training)
    return total / max(1, count)


@torch.no_grad()
def text_perplexity(model: nn.Module, tokenizer: Any, text: str, *, windows: int = 4, length: int = 256) -> float:
    """exp of the mean next-token loss over the first `windows` x `length` tokens of `text`, no picture, eval mode.

    A text shorter than one window makes one of its own. One window at a time, so that logits stay small.
    """
    ids = torch.tensor(tokenizer.encode(text, add_special_tokens=False)[: windows * length])
    length = min(length, len(ids))
    ids_WT = ids[: len(ids) // length * length].view(-1, length).to(next(model.parameters()).device)
    was_training = model.training
    model.eval()
    losses = [model(input_ids=ids_1T, labels=ids_1T, use_cache=False).loss.float() for ids_1T in torch.split(ids_WT, 1)]
    model.train(was_training)
    return float(torch.stack(losses).mean().double().exp())  # fp32 overflows at a loss of 89
