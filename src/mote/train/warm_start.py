"""Warm start of the connector: teach it the language model's vocabulary before any language model forward pass.

With connector outputs c_t (t over the image tokens) and answer words w, each the mean input embedding of its tokens,
both centred on the mean word:

    score(w) = logsumexp_t( 16 * cos(c_t, w) )          loss = cross-entropy of the picture's words over all words

plus a pull of |c_t| to the embeddings' mean norm. Some token has to say the word; which one is free. It takes seconds
on cached features and skips the plateau on which stage II otherwise sits for its first hundred steps. This is ours,
not the paper's.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mote.data.conversation import Conversation

TEMPERATURE = 16.0
NORM_PULL = 1e-2
BATCH = 64
MAX_WORDS = 3
"""Longer answers are sentences, whose mean embedding means nothing."""


def answer_words(conversations: Sequence[Conversation]) -> tuple[list[str], list[tuple[int, list[int]]]]:
    """(words, [(conversation index, its words' indices)]): what short answers name, lists taken apart, no numbers."""
    named = [
        {word for turn in c.turns for word in turn.answer.split(", ") if _names_something(word)} if c.image else set()
        for c in conversations
    ]
    words = sorted(set().union(*named))
    index = {word: i for i, word in enumerate(words)}
    return words, [(i, sorted(index[word] for word in chosen)) for i, chosen in enumerate(named) if chosen]


def _names_something(answer: str) -> bool:
    return len(answer.split()) <= MAX_WORDS and not any(character.isdigit() for character in answer)


def warm_start(
    connector: Callable[[Tensor], Tensor],
    parameters: Sequence[nn.Parameter],
    embeddings_VH: Tensor,
    tokenize: Callable[[str], list[int]],
    conversations: Sequence[Conversation],
    features: Callable[[Conversation], Tensor | None],
    *,
    epochs: int,
    learning_rate: float,
    seed: int,
    progress: Callable[[float, float], None] = lambda done, loss: None,
) -> list[float]:
    """Train `parameters` (fp32, the connector's) as above; returns the mean loss of each epoch.

    connector: features [B, P, D] -> [B, image tokens, H]. embeddings_VH: the language model's input embeddings.
    progress: called with (share of the work done, last loss). Does nothing when fewer than two words are named.
    """
    words, targets = answer_words(conversations)
    if len(words) < 2:
        return []
    word_WH = torch.stack([embeddings_VH[tokenize(word)].float().mean(0) for word in words])
    centre_H = word_WH.mean(0)
    direction_WH = functional.normalize(word_WH - centre_H, dim=-1)
    norm = embeddings_VH.float().norm(dim=-1).mean()
    optimizer = torch.optim.AdamW(parameters, learning_rate, weight_decay=0.0, fused=True)
    generator = torch.Generator().manual_seed(seed)
    batches = (len(targets) + BATCH - 1) // BATCH
    means = []
    for epoch in range(epochs):
        order = torch.randperm(len(targets), generator=generator).tolist()
        total = 0.0
        for batch in range(batches):
            done = (epoch * batches + batch) / (epochs * batches)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * (1 - done)
            chosen = [targets[i] for i in order[batch * BATCH : (batch + 1) * BATCH]]
            pictures = [seen for i, _ in chosen if (seen := features(conversations[i])) is not None]
            inputs = torch.stack(pictures).to(centre_H)
            output_BTH = connector(inputs).float()
            cosine_BTW = functional.normalize(output_BTH - centre_H, dim=-1) @ direction_WH.T
            log_p_BW = functional.log_softmax(torch.logsumexp(TEMPERATURE * cosine_BTW.float(), dim=1), dim=-1)
            share_BW = torch.zeros_like(log_p_BW)
            for row, (_, ids) in enumerate(chosen):
                share_BW[row, ids] = 1 / len(ids)
            named = -(log_p_BW * share_BW).sum(-1).mean()
            loss = named + NORM_PULL * (output_BTH.norm(dim=-1) / norm - 1).square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += float(named.detach())
            progress(done, float(named.detach()))
        means.append(total / batches)
    return means
