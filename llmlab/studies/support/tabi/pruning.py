"""Which words of a sentence go on to the next level: attention of the last token, summed by word."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llmlab.models.batch import Batch, Span
from llmlab.models.decoder import Decoder


@torch.inference_mode()
def read(model: Decoder, ids: Sequence[int], layers: int, with_attention: bool) -> tuple[Tensor, Tensor | None]:
    """The last token's state (1, E), and the attention (T,) that it gives each token, None unless it is asked for.

    The attention is the mean over heads and layers.
    """
    seen: dict[int, Tensor] = {}

    def watch(layer: int, weights: Tensor) -> None:
        seen[layer] = weights[:, -1].mean(0)  # of a long sentence the last piece stays, which sees all

    span = Span(0, len(ids), model.memory(), watch=watch if with_attention else None, first=0)
    batch = Batch(torch.tensor(ids, device=model.device), torch.arange(len(ids), device=model.device), [span])
    model.prepare(batch)
    h = model.run_layers(model.embedding.lookup(batch.tokens), batch, 0, layers)
    return h[-1:].float(), torch.stack(list(seen.values())).mean(0).cpu() if with_attention else None


def words_of(pieces: Sequence[str]) -> list[int]:
    """Which word each token belongs to, from the tokens as the vocabulary writes them."""
    number, found = -1, []
    for piece in pieces:
        if number < 0 or piece[:1] in ("Ġ", "▁", " "):
            number += 1
        found.append(number)
    return found


def pruned(ids: Sequence[int], word: Sequence[int], given: Tensor, share: float, always: int) -> list[int]:
    """The ids without the `share` of words that were given least, in order; the first and the last `always` stay.

    A word's weight is the sum of its tokens'.
    """
    body = len(ids) - always
    weight: dict[int, float] = {}
    for i in range(1, body):
        if word[i] != word[0]:
            weight[word[i]] = weight.get(word[i], 0.0) + float(given[i])
    gone = set(sorted(weight, key=lambda w: weight[w])[: int(share * len(weight))])
    return [t for i, t in enumerate(ids) if i >= body or word[i] not in gone]
