"""bitgen's objectives in PyTorch: those of `jaxmodels.bitgen.objectives` on the twin, for
`benchmarks.step`. Without momentum's slow encoders, which no preset has."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jaxmodels.bitgen.objectives import SMOOTHING
from jaxmodels.layers.blocks import HIDDEN
from jaxmodels.layers.contrast import COLDEST, WARMEST

UNCOUNTED = -100  # a target that cross-entropy leaves out


def loss(module: Any, batch: dict[str, Tensor], draws: bool = True) -> tuple[Tensor, Any]:
    """The weighted sum of contrast, matching, writing and the memory's divergence.

    Args:
        module: the twin, in training mode.
        batch: `tokens` int64 and `mask` [b, t], `images` uint8 [b, y, x, 3], `image_id` [b].
        draws: draw hard negatives and the memory's noise; else the likeliest, and no noise.

    Returns:
        the loss; and the features that `commit` queues.
    """
    tokens, ids, padding_mask = batch["tokens"], batch["image_id"], batch["mask"] == 1
    padding_mask[:, 0] = True
    mask = padding_mask[:, None, None]
    x = F.dropout(_embedded(module, tokens), module.config.dropout, module.training)
    x = module.run(module.text, x, mask, upper=False)
    pooled = _mean(module.text_norm(module.run(module.text, x, mask, upper=True)), padding_mask)
    text = module.text_pool(pooled)
    y = module.patches(batch["images"].permute(0, 3, 1, 2).to(module.embed.weight) / 255)
    y = module.run(module.image, y, None, upper=False)
    seen = module.image_norm(module.run(module.image, y, None, upper=True))
    image = module.image_pool(seen.mean(1))
    same = (ids[:, None] == ids) | (tokens[:, None] == tokens).all(-1)
    contrast, t2i, i2t = _contrast(module, text, image, ids, same)
    matching = _matching(module, (x, padding_mask, y), (t2i, i2t), same, draws)
    keys = to_float32(image.detach())
    with torch.autocast(tokens.device.type, enabled=False):  # linear systems need float32
        codes = module.memory.codes(to_float32(pooled))
        codes, divergence = _episode(module.memory, keys, codes, draws)
        empty = module.memory.address(keys) @ module.memory.mean
    # In training a row's position decides what it is written from, else a hash of its image's id.
    turn = torch.arange(len(ids), device=ids.device)
    turn = turn if draws else (ids.long() * 2654435769 % 2**32) >> 29
    writing = _writing(module, tokens, padding_mask, seen, codes, empty, turn)
    parts = (contrast, matching, writing, divergence)
    total = sum(weight * part for weight, part in zip(module.config.weights, parts, strict=True))
    return total, (text.detach(), image.detach(), ids)


@torch.no_grad()
def commit(module: Any, kept: Any) -> None:
    """Queues the features of a batch in place of the oldest."""
    queue, n = module.queue, len(module.queue.ids)
    text, image, ids = (rows[-n:] for rows in kept)
    places = (queue.total + torch.arange(len(ids), device=ids.device)) % n
    queue.text[places], queue.image[places] = text.to(queue.text), image.to(queue.image)
    queue.ids[places] = ids.to(queue.ids)
    total = queue.total + len(ids)
    queue.total.copy_(torch.where(total >= 2 * n, n + total % n, total))


def _contrast(
    module: Any, text: Tensor, image: Tensor, ids: Tensor, same: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy over batch and queue, and the similarities within the batch, text to image and
    image to text."""
    queue, b = module.queue, len(ids)
    filled = torch.arange(len(queue.ids), device=ids.device) < queue.total
    positive = torch.cat([same, (ids[:, None] == queue.ids) & filled], 1)
    target = positive / positive.sum(1, keepdim=True)
    empty = torch.cat([torch.zeros_like(filled[:1]).expand(b), ~filled])
    # Clamped, but with a gradient outside the bounds too.
    warmth = module.temperature
    warmth = warmth + (warmth.clamp(COLDEST, WARMEST) - warmth).detach()

    def compared(query: Tensor, key: Tensor, held: Tensor) -> Tensor:
        return to_float32(query @ torch.cat([key.detach(), held.to(key)]).T / warmth)

    t2i, i2t = compared(text, image, queue.image), compared(image, text, queue.text)
    losses = [F.cross_entropy(sims.masked_fill(empty, HIDDEN), target) for sims in (t2i, i2t)]
    return (losses[0] + losses[1]) / 2, t2i[:, :b].detach(), i2t[:, :b].detach()


def _matching(
    module: Any,
    pair: tuple[Tensor, Tensor, Tensor],
    sims: tuple[Tensor, Tensor],
    same: Tensor,
    draws: bool,
) -> Tensor:
    """Cross-entropy on 3b pairs: (I, T), (I, a hard T), (a hard I, T)."""

    def negatives(scores: Tensor) -> Tensor:
        scores = scores.masked_fill(same, -torch.inf)
        if draws:  # Gumbel noise: the largest is a draw from the softmax
            scores = scores - torch.empty_like(scores).exponential_().log()
        return scores.argmax(1)

    x, padding_mask, y = pair
    own, some = torch.arange(len(x), device=x.device), ~same.all(1)
    texts = torch.cat([own, negatives(sims[1]), own])
    images = torch.cat([own, own, negatives(sims[0])])
    padding_mask = padding_mask[texts]
    text, image = module.together(x[texts], padding_mask[:, None, None], y[images])
    logits = module.match(torch.cat([_mean(text, padding_mask), image.mean(1)], 1))
    labels = torch.cat([torch.ones_like(own), torch.zeros_like(own).repeat(2)])
    counts = torch.cat([torch.ones_like(some), some, some])
    return F.cross_entropy(to_float32(logits), labels.masked_fill(~counts, UNCOUNTED))


def _episode(memory: Any, keys: Tensor, codes: Tensor, draws: bool) -> tuple[Tensor, Tensor]:
    """Writes rows into empty memories and reads them: their codes, and the divergence."""
    m, d = memory.mean.shape
    size = next(n for n in range(max(m // 2, 1), 0, -1) if len(codes) % n == 0)
    keys, codes = (x.unflatten(0, (-1, size)) for x in (keys, codes))
    mean = memory.address(keys)
    at, written, w = mean, codes, mean
    if draws:
        at = memory.address(keys + memory.noise * torch.randn_like(keys))
        written = codes + memory.noise * torch.randn_like(codes)
        w = mean + (memory.address_log_variance / 2).exp() * torch.randn_like(mean)
    before = (-memory.log_variance).exp()
    precision = memory.noise**2 * before.diag() + at.mT @ at
    total = memory.noise**2 * before[:, None] * memory.mean + at.mT @ written
    eye = memory.noise**2 * torch.eye(m).to(keys).expand_as(precision)
    slots, covariance = torch.linalg.solve(precision, torch.cat([total, eye], -1)).split([d, m], -1)
    spread = (before * covariance.diagonal(dim1=-2, dim2=-1)).sum(-1)
    volume = memory.log_variance.sum() - torch.linalg.slogdet(covariance).logabsdet
    moved = (before[:, None] * (slots - memory.mean) ** 2).sum((-2, -1))
    of_slots = (d * (spread - m + volume) + moved) / (2 * m * d)
    log = memory.address_log_variance
    of_addresses = 0.5 * (log.exp() + mean**2 - 1 - log).mean(-1)
    return (w @ slots).flatten(0, 1), of_slots.mean() + of_addresses.mean()


def _writing(
    module: Any,
    tokens: Tensor,
    padding_mask: Tensor,
    seen: Tensor,
    codes: Tensor,
    empty: Tensor,
    turn: Tensor,
) -> Tensor:
    """Cross-entropy of generating each text: of eight rows five see their image and an empty
    memory, two the memory of it, and one both."""
    recalls, both = turn % 4 == 1, turn % 8 == 3
    token = module.memory.out(torch.where((recalls | both)[:, None], codes, empty))
    context = torch.cat([seen, token[:, None]], 1)
    sees = (~recalls[:, None]).repeat(1, context.shape[1])
    sees[:, -1] = True
    before = _embedded(module, tokens[:, :-1])
    x = torch.cat([module.decoder.start.expand(len(before), 1, -1), before], 1)
    causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
    for block in module.decoder.blocks:
        x = block(x, causal[None, None], block.cross.seen(context), sees[:, None, None])
    logits = to_float32(F.linear(module.decoder.norm(x), module.embed.weight).flatten(0, 1))
    targets = tokens.masked_fill(~padding_mask, UNCOUNTED).flatten()
    return F.cross_entropy(logits, targets, label_smoothing=SMOOTHING)


def _embedded(module: Any, tokens: Tensor) -> Tensor:
    """Tokens [b, t] and their positions as vectors [b, t, d]."""
    embedded: Tensor = module.placed(tokens, torch.arange(tokens.shape[1], device=tokens.device))
    return embedded


def _mean(x: Tensor, padding_mask: Tensor) -> Tensor:
    """The mean of [b, t, d] over tokens."""
    return (x * (padding_mask / padding_mask.sum(1, keepdim=True))[..., None]).sum(1)


def to_float32(x: Tensor) -> Tensor:
    """float32, or float64 if it is float64 already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
