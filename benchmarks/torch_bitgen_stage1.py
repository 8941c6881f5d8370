"""bitgen_stage1's losses in PyTorch: those of `jaxmodels.bitgen_stage1.objective` on the twin, for
`benchmarks.step`. Source: seed 004."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.torch_bitgen import to_float32
from jaxmodels.bitgen_stage1.memory import KEPT
from jaxmodels.bitgen_stage1.objective import CONTRASTIVE, DIVERGENCE, MATCHING, SMOOTHING, TEXT


def loss(module: Any, batch: dict[str, Tensor], draws: bool = True) -> tuple[Tensor, Any]:
    """The weighted sum of the seed's losses; the batch is queued before it is contrasted.

    Args:
        module: the twin, in training mode.
        batch: `tokens` int64 [b, t], `images` uint8 [b, y, x, 3].
        draws: draw the memory's noise; else its mean is read.

    Returns:
        the loss; and the memory and its counters, which `commit` stores.
    """
    fusion, memory, tokens = module.fusion, module.memory, batch["tokens"]
    words = module.embedded(tokens)
    seen = module.seen(batch["images"].permute(0, 3, 1, 2).to(module.embed.weight) / 255)
    noise = torch.randn_like(memory.mean) if draws else None
    x, queries, slots = memory.recall(fusion(words, seen), noise)
    for block in module.blocks:
        x = block(x)
    logits = module.decoder(module.embedded(tokens), module.norm(x))
    logits = to_float32(logits.flatten(0, 1))
    text = F.cross_entropy(logits, tokens.flatten(), label_smoothing=SMOOTHING)
    written = _written(memory, to_float32(queries.detach().flatten(0, 1)), slots)
    # The value of the written memory, the gradient of the one that was read.
    mean = memory.mean + (written[0] - memory.mean).detach()
    log = memory.logvar[0]
    divergence = 0.5 * (log.exp() + (mean**2).mean() - 1 - log)
    features = fusion.text_features(words), fusion.image_features(seen)
    _queue(fusion, *(rows.detach() for rows in features))
    contrast, matching = _contrasted(
        *features, fusion.text_queue, fusion.image_queue, fusion.temperature
    )
    total = CONTRASTIVE * contrast + MATCHING * matching + TEXT * text + DIVERGENCE * divergence
    return total, written


@torch.no_grad()
def commit(module: Any, kept: Any) -> None:
    """Stores the memory and its counters, between gradient and optimiser."""
    memory = module.memory
    places = (memory.mean, memory.write_count, memory.read_count)
    for place, value in zip(places, kept, strict=True):
        place.copy_(value)


@torch.no_grad()
def _written(memory: Any, queries: Tensor, slots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The memory after the longest queries [n, d] are written to the least written slots; how often
    each slot was written, and read, once for all tokens of a batch."""
    count = min(len(queries), len(memory.mean))
    longest = queries.norm(dim=-1).topk(count).indices
    least = memory.write_count.argsort(stable=True)[:count]
    mean = memory.mean.clone()
    mean[least] = KEPT * mean[least] + (1 - KEPT) * queries[longest]
    writes = memory.write_count.clone()
    writes[least] += 1
    hits = torch.zeros_like(writes)
    hits[slots.flatten()] = 1
    return mean, writes, memory.read_count + hits


def _queue(fusion: Any, text: Tensor, image: Tensor) -> None:
    """Queues features in place of the oldest."""
    texts, images, start = fusion.text_queue, fusion.image_queue, fusion.queue_ptr
    at = (start + torch.arange(len(text), device=text.device)) % texts.shape[1]
    texts[:, at], images[:, at] = text.T.to(texts), image.T.to(images)
    start.copy_((start + len(text)) % texts.shape[1])


def _contrasted(
    text: Tensor, image: Tensor, texts: Tensor, images: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    """The contrastive loss with batch and queues, and the matching loss with hard negatives."""
    own = torch.arange(len(text), device=text.device)
    near = text @ image.T
    to_image = to_float32(torch.cat([near, text @ images.to(text)], 1) / temperature)
    to_text = to_float32(torch.cat([near.T, image @ texts.to(image)], 1) / temperature)
    contrast = (F.cross_entropy(to_image, own) + F.cross_entropy(to_text, own)) / 2
    hardest = near.detach().clone().fill_diagonal_(-torch.inf).argmax(1)
    matching = F.softplus(-near[own, own]).mean() + F.softplus(near[own, hardest]).mean()
    return contrast, matching / 2
