"""bitgen in PyTorch, for transformers: texts and images, ternary weights, a memory.

This file stands alone and travels with every model directory, so that
`AutoModel.from_pretrained(DIR, trust_remote_code=True)` opens it.

Notable: linears of encoders and decoder are BitNet's (ternary weights, activations of 8 bits, both
rounded straight through when training); the encoders see each other through gated cross-attention
in `embeddings` only; the decoder sees the image and what the memory has at its feature. The memory
and the queue are kept; jaxmodels writes them.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

EPS = 1e-6
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class BitGenConfig(PretrainedConfig):
    """Sizes of one bitgen; `dinov2` holds those of the image tower."""

    model_type = "bitgen"

    def __init__(
        self,
        vocab: int = 50_257,
        dim: int = 128,
        layers: int = 4,
        image_layers: int = 2,
        merge: int = 1,
        fused: int = 2,
        decoder_layers: int = 2,
        heads: int = 4,
        hidden: int = 256,
        context: int = 256,
        image_size: int = 224,
        dropout: float = 0.1,
        queue: int = 4096,
        temperature: float = 0.07,
        momentum: float = 0.0,
        weights: tuple[float, ...] = (1.0, 0.5, 0.5, 0.1),
        slots: int = 32,
        noise: float = 0.01,
        addressing: str = "ridge",
        dinov2: dict[str, Any] | None = None,
        **kwargs,
    ):
        self.vocab = vocab
        self.dim = dim
        self.layers = layers
        self.image_layers = image_layers
        self.merge = merge
        self.fused = fused
        self.decoder_layers = decoder_layers
        self.heads = heads
        self.hidden = hidden
        self.context = context
        self.image_size = image_size
        self.dropout = dropout
        self.queue = queue
        self.temperature = temperature
        self.momentum = momentum
        self.weights = weights
        self.slots = slots
        self.noise = noise
        self.addressing = addressing
        base = {"dim": 768, "layers": 12, "heads": 12, "mlp": "gelu", "hidden": 3072, "patch": 14}
        more = {"image_size": 518, "registers": 0, "interpolation": "scale_offset"}
        self.dinov2 = {**base, **more, **(dinov2 or {})}
        super().__init__(**{"tie_word_embeddings": False, **kwargs})


@dataclass
class BitGenOutput(ModelOutput):
    """What the model gives."""

    embeddings: Tensor | None = None
    """[b, t, d]: of each token, in sight of the image if there is one."""
    text_features: Tensor | None = None
    """[b, d], unit vectors."""
    image_features: Tensor | None = None
    """[b, d], unit vectors; None without images."""
    decoder_logits: Tensor | None = None
    """[b, u, v]; at u, of the target at u after the targets before it. None without targets."""


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[b, t, d] → [b, h, t, k]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Softmax attention of [b, t, d] at scale 1/sqrt(k); mask [b, 1, t or 1, s], True = seen."""
    q, k, v = (split_heads(x, heads) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(-2)


class TowerAttention(nn.Module):
    """Every patch sees every patch."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """[b, t, h] → [b, t, h]."""
        return self.proj(attend(self.q(x), self.k(x), self.v(x), self.heads))


class TowerMlp(nn.Module):
    """Two layers with the exact GELU between."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[b, t, h] → [b, t, h]."""
        return self.fc2(F.gelu(self.fc1(x)))


class TowerSwiGlu(nn.Module):
    """silu(gate(x)) · up(x), and back."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.gate, self.up = nn.Linear(dim, hidden), nn.Linear(dim, hidden)
        self.down = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[b, t, h] → [b, t, h]."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


class TowerBlock(nn.Module):
    """Pre-norm; each branch is scaled by a learned vector."""

    def __init__(self, size: dict[str, Any]):
        super().__init__()
        dim = size["dim"]
        self.norm1, self.norm2 = nn.LayerNorm(dim, EPS), nn.LayerNorm(dim, EPS)
        self.attn = TowerAttention(dim, size["heads"])
        self.ls1, self.ls2 = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.ones(dim))
        self.mlp = (TowerMlp if size["mlp"] == "gelu" else TowerSwiGlu)(dim, size["hidden"])

    def forward(self, x: Tensor) -> Tensor:
        """[b, t, h] → [b, t, h]."""
        x = x + self.ls1 * self.attn(self.norm1(x))
        return x + self.ls2 * self.mlp(self.norm2(x))


class Tower(nn.Module):
    """DINOv2, with its three ways to interpolate positions."""

    def __init__(self, size: dict[str, Any]):
        super().__init__()
        dim, patch = size["dim"], size["patch"]
        self.side, self.interpolation = size["image_size"] // patch, size["interpolation"]
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        self.mask = nn.Parameter(torch.zeros(1, dim))  # never read, and part of every checkpoint
        self.pos = nn.Parameter(torch.zeros(1, 1 + self.side**2, dim))
        if size["registers"]:
            self.registers = nn.Parameter(torch.zeros(1, size["registers"], dim))
        self.patch = nn.Conv2d(3, dim, patch, patch)
        self.blocks = nn.ModuleList(TowerBlock(size) for _ in range(size["layers"]))
        self.norm = nn.LayerNorm(dim, EPS)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images [b, 3, y, x] → the class token [b, 1, h] and the patches [b, n, h]."""
        x = self.patch(images)
        rows, columns = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2) + self.positions(rows, columns)
        first = [self.cls + self.pos[:, :1]]
        if hasattr(self, "registers"):
            first.append(self.registers)
        x = torch.cat([*(token.expand(len(x), -1, -1) for token in first), x], 1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return x[:, :1], x[:, -rows * columns :]

    def positions(self, rows: int, columns: int) -> Tensor:
        """Positions of a grid of patches, [1, n, h]."""
        grid = self.pos[:, 1:]
        if rows == columns == self.side:
            return grid
        wide = torch.promote_types(grid.dtype, torch.float32)
        square = grid.to(wide).unflatten(1, (self.side, self.side)).permute(0, 3, 1, 2)
        how: dict[str, Any] = {"mode": "bicubic", "align_corners": False}
        if self.interpolation == "scale_offset":
            how["scale_factor"] = ((rows + 0.1) / self.side, (columns + 0.1) / self.side)
        else:
            how |= {"size": (rows, columns), "antialias": self.interpolation == "antialias"}
        return F.interpolate(square, **how).flatten(2).transpose(1, 2).to(grid.dtype)


def straight(x: Tensor, rounded: Tensor) -> Tensor:
    """The rounded values, with the gradient of those before."""
    return x + (rounded - x).detach()


class BitLinear(nn.Module):
    """Normalised input of 8 bits for each token, ternary weights (BitNet b1.58); no bias."""

    def __init__(self, fan_in: int, fan_out: int):
        super().__init__()
        self.norm = nn.RMSNorm(fan_in, EPS)
        self.weight = nn.Parameter(torch.randn(fan_out, fan_in) * fan_in**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[…, in] → […, out]."""
        x = self.norm(x)
        by = 1 / self.weight.abs().mean().clamp(min=1e-5)
        scale = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        signs = (self.weight * by).round().clamp(-1, 1)
        levels = (x * scale).round().clamp(-128, 127)
        if self.training:
            return F.linear(straight(x, levels / scale), straight(self.weight, signs / by))
        return F.linear(levels, signs) * ((1 / by) * (1 / scale))


class Attention(nn.Module):
    """Self-attention of any kind."""

    def __init__(self, config: BitGenConfig):
        super().__init__()
        self.heads = config.heads
        self.qkv = BitLinear(config.dim, 3 * config.dim)
        self.proj = BitLinear(config.dim, config.dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """[b, t, d] → [b, t, d]."""
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.proj(attend(q, k, v, self.heads, mask))


class CrossAttention(nn.Module):
    """Attention to another sequence."""

    def __init__(self, config: BitGenConfig):
        super().__init__()
        self.heads = config.heads
        self.q = BitLinear(config.dim, config.dim)
        self.kv = BitLinear(config.dim, 2 * config.dim)
        self.proj = BitLinear(config.dim, config.dim)

    def forward(self, x: Tensor, other: Tensor, mask: Tensor | None) -> Tensor:
        """[b, t, d] and [b, s, d] → [b, t, d]."""
        k, v = self.kv(other).chunk(2, -1)
        return self.proj(attend(self.q(x), k, v, self.heads, mask))


class Mlp(nn.Module):
    """Two layers with a squared ReLU between."""

    def __init__(self, config: BitGenConfig):
        super().__init__()
        self.up = BitLinear(config.dim, config.hidden)
        self.out = BitLinear(config.hidden, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        """[b, t, d] → [b, t, d]."""
        return self.out(F.relu(self.up(x)).square())


class Block(nn.Module):
    """Attention to itself, to another sequence where the block has `cross`, and feed-forward."""

    def __init__(self, config: BitGenConfig, cross: bool = False, gated: bool = True):
        super().__init__()
        self.rate, self.gate = config.dropout, None
        self.attn = Attention(config)
        if cross:
            self.cross = CrossAttention(config)
        if cross and gated:
            self.gate = nn.Parameter(torch.zeros(()))
        self.mlp = Mlp(config)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        other: Tensor | None = None,
        seen: Tensor | None = None,
    ) -> Tensor:
        """[b, t, d] → [b, t, d]; `other` [b, s, d] is seen where the mask `seen` is True."""
        x = x + self.drop(self.attn(x, mask))
        if other is not None:
            out = self.cross(x, other, seen)
            x = x + self.drop(out if self.gate is None else self.gate * out)
        return x + self.drop(self.mlp(x))

    def drop(self, x: Tensor) -> Tensor:
        """Dropout when training."""
        return F.dropout(x, self.rate, self.training)


class Pooler(nn.Module):
    """A mean over tokens to a unit vector."""

    def __init__(self, config: BitGenConfig):
        super().__init__()
        self.dense = nn.Linear(config.dim, config.dim)
        self.proj = nn.Linear(config.dim, config.dim)

    def forward(self, pooled: Tensor) -> Tensor:
        """[b, d] → [b, d]."""
        return F.normalize(self.proj(self.dense(pooled).tanh()), dim=-1, eps=1e-6)


class Memory(nn.Module):
    """Larimar's slots: what was written lies in `gram` and `total`, and is read by solving."""

    gram: Tensor
    total: Tensor
    count: Tensor

    def __init__(self, config: BitGenConfig):
        super().__init__()
        m, d = config.slots, config.dim
        self.noise, self.addressing = config.noise, config.addressing
        self.keys, self.mean = nn.Parameter(torch.zeros(m, d)), nn.Parameter(torch.zeros(m, d))
        self.log_variance = nn.Parameter(torch.zeros(m))
        self.address_log_variance = nn.Parameter(torch.zeros(m))
        self.code, self.out = nn.Linear(d, d), nn.Linear(d, d)
        self.register_buffer("gram", torch.zeros(m, m))
        self.register_buffer("total", torch.zeros(m, d))
        self.register_buffer("count", torch.zeros((), dtype=torch.int32))

    def codes(self, pooled: Tensor) -> Tensor:
        """The code of texts by the mean of their tokens, [b, d]."""
        return F.layer_norm(self.code(pooled), pooled.shape[-1:], eps=1e-6)

    def address(self, features: Tensor) -> Tensor:
        """Where unit features lie in the memory: [b, m]."""
        keys = self.keys
        if self.addressing == "ridge":
            gram = keys @ keys.T + self.noise**2 * torch.eye(len(keys)).to(keys)
            return features @ torch.linalg.solve(gram, keys).T
        inverse = keys.T / (keys.abs().sum(0).max() * keys.abs().sum(1).max())
        for _ in range(30):
            inverse = 2 * inverse - inverse @ (keys @ inverse)
        return features @ inverse

    def forward(self, features: Tensor, noise: Tensor | None = None) -> Tensor:
        """What lies at these keys [b, d]; noise [b, m] draws addresses."""
        before = self.noise**2 * (-self.log_variance).exp()
        slots = torch.linalg.solve(
            before.diag() + self.gram, before[:, None] * self.mean + self.total
        )
        w = self.address(features)
        if noise is not None:
            w = w + (self.address_log_variance / 2).exp() * noise
        return w @ slots


class Decoder(nn.Module):
    """Causal blocks that look at another sequence; a learned start stands before the text."""

    def __init__(self, config: BitGenConfig):
        super().__init__()
        self.start = nn.Parameter(torch.zeros(config.dim))
        self.blocks = nn.ModuleList(
            Block(config, cross=True, gated=False) for _ in range(config.decoder_layers)
        )
        self.norm = nn.RMSNorm(config.dim, EPS)

    def forward(self, x: Tensor, context: Tensor, seen: Tensor | None = None) -> Tensor:
        """Embedded text [b, t, d], and context [b, s, d], of which the mask `seen` [b, 1, 1, s]
        tells what is seen (all, if None) → [b, t + 1, d]."""
        x = torch.cat([self.start.expand(len(x), 1, -1), x], 1)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        for block in self.blocks:
            x = block(x, mask[None, None], context, seen)
        return self.norm(x)


class Queue(nn.Module):
    """Features of earlier batches, which only the trainer in jaxmodels fills."""

    def __init__(self, config: BitGenConfig):
        super().__init__()
        n, d = config.queue, config.dim
        self.register_buffer("text", torch.zeros(n, d))
        self.register_buffer("image", torch.zeros(n, d))
        self.register_buffer("ids", torch.zeros(n, dtype=torch.int32))
        self.register_buffer("total", torch.zeros((), dtype=torch.int32))


class BitGenModel(PreTrainedModel):
    """bitgen."""

    config_class = BitGenConfig
    main_input_name = "input_ids"

    def __init__(self, config: BitGenConfig):
        super().__init__(config)

        def blocks(count: int) -> nn.ModuleList:
            lower = count - config.fused
            return nn.ModuleList(Block(config, cross=i >= lower) for i in range(count))

        self.embed = nn.Embedding(config.vocab, config.dim)
        self.pos = nn.Embedding(config.context, config.dim)
        self.vision = Tower(config.dinov2)
        self.project = nn.Linear(config.merge**2 * config.dinov2["dim"], config.dim)
        self.text, self.image = blocks(config.layers), blocks(config.image_layers)
        self.text_norm = nn.RMSNorm(config.dim, EPS)
        self.image_norm = nn.RMSNorm(config.dim, EPS)
        self.text_pool, self.image_pool = Pooler(config), Pooler(config)
        self.temperature = nn.Parameter(torch.tensor(config.temperature))
        self.match = nn.Linear(2 * config.dim, 2)
        self.memory, self.decoder, self.queue = Memory(config), Decoder(config), Queue(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding, whose rows are the decoder's head too."""
        return self.embed

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        targets: Tensor | None = None,
        noise: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs,
    ) -> BitGenOutput:
        """Embeddings of texts, features of texts and images, logits of targets.

        Args:
            input_ids: int64 [b, t], at most `context` tokens.
            pixel_values: [b, 3, y, x], values in [0, 1], not normalised; of any size.
            targets: int64 [b, u]; each is predicted from those before it.
            noise: [b, m], standard normal, of the memory's addresses; None reads at their mean.
            attention_mask: [b, t], 1 = token, 0 = padding.
            kwargs: what transformers passes to every model; not used.

        Raises:
            ValueError: a text is longer than the context.
        """
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask.clone()
        real[:, 0] = 1
        real = real == 1
        mask = real[:, None, None]
        x = F.dropout(self.embedded(input_ids), self.config.dropout, self.training)
        x = self.run(self.text, x, mask, upper=False)
        alone = self.text_norm(self.run(self.text, x, mask, upper=True))
        weight = (real / real.sum(1, keepdim=True)).to(alone)
        text_features = self.text_pool((alone * weight[..., None]).sum(1))
        embeddings, seen, image_features = alone, None, None
        if pixel_values is not None:
            y = self.run(self.image, self.seen(pixel_values), None, upper=False)
            seen = self.image_norm(self.run(self.image, y, None, upper=True))
            image_features = self.image_pool(seen.mean(1))
            embeddings = self.together(x, mask, y)[0]
        logits = None
        if targets is not None:
            features = text_features if image_features is None else image_features
            logits = self.written(targets[:, :-1], self.context(seen, features, noise))
        return BitGenOutput(embeddings, text_features, image_features, logits)

    @torch.no_grad()
    def caption(self, pixel_values: Tensor, most: int = 32, end: int | None = None) -> Tensor:
        """The likeliest tokens about images [b, 3, y, x], int64 [b, at most `most`].

        A row is to be read up to the token `end`; it stops when all rows have it.
        """
        y = self.run(self.image, self.seen(pixel_values), None, upper=False)
        seen = self.image_norm(self.run(self.image, y, None, upper=True))
        context = self.context(seen, self.image_pool(seen.mean(1)), None)
        tokens = torch.zeros(len(seen), 0, dtype=torch.long, device=seen.device)
        for _ in range(min(most, self.config.context)):
            new = self.written(tokens, context)[:, -1].argmax(-1, keepdim=True)
            tokens = torch.cat([tokens, new], 1)
            if end is not None and bool((tokens == end).any(1).all()):
                break
        return tokens

    def run(self, blocks: nn.ModuleList, x: Tensor, mask: Tensor | None, upper: bool) -> Tensor:
        """[b, t, d] through the blocks that see the other side, each alone, or those before."""
        lower = len(blocks) - self.config.fused
        for block in blocks[lower:] if upper else blocks[:lower]:
            x = block(x, mask)
        return x

    def together(self, x: Tensor, mask: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Both sides through the blocks in which they see each other."""
        fused = self.config.fused
        texts, images = self.text[len(self.text) - fused :], self.image[len(self.image) - fused :]
        for text, image in zip(texts, images, strict=True):
            x, y = text(x, mask, y), image(y, None, x, mask)
        return self.text_norm(x), self.image_norm(y)

    def context(self, seen: Tensor | None, features: Tensor, noise: Tensor | None) -> Tensor:
        """What the decoder sees: the image's tokens, and one of what the memory has: [b, s, d]."""
        token = self.memory.out(self.memory(features, noise))[:, None]
        return token if seen is None else torch.cat([seen, token], 1)

    def written(self, tokens: Tensor, context: Tensor) -> Tensor:
        """Logits after the start and after each token, [b, t + 1, v]."""
        return F.linear(self.decoder(self.embedded(tokens), context), self.embed.weight)

    def embedded(self, tokens: Tensor) -> Tensor:
        """Tokens [b, t] and their positions as vectors [b, t, d]."""
        if tokens.shape[1] > self.config.context:
            raise ValueError(f"a text is longer than the context of {self.config.context}")
        return self.embed(tokens) + self.pos.weight[: tokens.shape[1]]

    def seen(self, images: Tensor) -> Tensor:
        """Images [b, 3, y, x] with values in [0, 1] as tokens [b, p, d]: the class token, then
        squares of patches."""
        side, merge = self.config.image_size, self.config.merge
        if tuple(images.shape[-2:]) != (side, side):
            images = F.interpolate(images, (side, side), mode="bilinear", align_corners=False)
        mean, std = (images.new_tensor(values)[:, None, None] for values in (MEAN, STD))
        cls, patches = self.vision((images - mean) / std)
        rows = side // self.config.dinov2["patch"] // merge
        patches = patches.unflatten(1, (rows, merge, rows, merge)).transpose(2, 3)
        squares = patches.flatten(3, 5).flatten(1, 2)
        return self.project(torch.cat([cls.repeat(1, 1, merge**2), squares], 1))
