"""bitgen in PyTorch, for transformers: texts and images, ternary weights, a memory.

This file stands alone and travels with every model directory, so that
`AutoModel.from_pretrained(DIR, trust_remote_code=True)` opens it.

Notable: linears of encoders and decoder are BitNet's (ternary weights, activations of 8 bits, both
rounded straight through when training); the encoders see each other through gated cross-attention
in `embeddings` only; the decoder sees the image and what the memory has at its feature. `generate`
captions images; `write`, `forget` and `recollect` use the memory. The queue is kept, and only the
trainer in jaxmodels fills it.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import ModelOutput

EPS = 1e-6
PACKED = 1  # the version of packed files
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


# Configuration and output ------------------------------------------------------------------------


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
        queue_inputs: bool = False,
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
        self.queue_inputs = queue_inputs
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
    contrastive_features: dict[str, Tensor] | None = None
    """The features again, and the temperature of their similarities, as BitGen's card names them;
    None unless asked for."""


# The image tower: DINOv2 -------------------------------------------------------------------------


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[b, t, d] → [b, h, t, k]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention of [b, h, t, k] at scale 1/sqrt(k), [b, t, d]; mask [b, 1, t or 1, s],
    True = seen."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(-2)


class TowerAttention(nn.Module):
    """Every patch sees every patch."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """[b, t, h] → [b, t, h]."""
        q, k, v = (split_heads(part(x), self.heads) for part in (self.q, self.k, self.v))
        return self.proj(attend(q, k, v))


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
        first = [self.cls + matrix(self, "pos")[:, :1]]
        if hasattr(self, "registers"):
            first.append(self.registers)
        x = torch.cat([*(token.expand(len(x), -1, -1) for token in first), x], 1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return x[:, :1], x[:, -rows * columns :]

    def positions(self, rows: int, columns: int) -> Tensor:
        """Positions of a grid of patches, [1, n, h]."""
        grid = matrix(self, "pos")[:, 1:]
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


# Linear layers: BitNet b1.58, packed and in 8 bits -----------------------------------------------


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
        sizes = self.weight.abs()
        most = sizes.max()
        # Weights that are rounded already keep their scale; the mean would count their zeros.
        rounded = sizes.sum() >= (1 - 1e-5) * most * (sizes > 0).sum()
        by = 1 / torch.where(rounded, most, sizes.mean()).clamp(min=1e-5)
        scale = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        signs = (self.weight * by).round().clamp(-1, 1)
        levels = (x * scale).round().clamp(-128, 127)
        if self.training:
            return F.linear(straight(x, levels / scale), straight(self.weight, signs / by))
        return F.linear(levels, signs) * ((1 / by) * (1 / scale))


class PackedBitLinear(nn.Module):
    """A BitLinear of a packed model: four weights in a byte of `weight` [out / 4, in], the first
    quarter of the outputs in the lowest two bits; `weight_scale` [1] divides. No gradient."""

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, linear: BitLinear):
        super().__init__()
        self.fan_out, fan_in = linear.weight.shape
        self.norm = linear.norm
        size = (-(-self.fan_out // 4), fan_in)
        self.register_buffer("weight", torch.zeros(size, dtype=torch.uint8))
        self.register_buffer("weight_scale", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """[…, in] → […, out]."""
        x = self.norm(x)
        scale = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        parts = [(self.weight >> shift) & 3 for shift in (0, 2, 4, 6)]
        signs = torch.cat(parts)[: self.fan_out].to(x) - 1
        levels = (x * scale).round().clamp(-128, 127)
        return F.linear(levels, signs) * ((1 / self.weight_scale) * (1 / scale))


def matrix(module: nn.Module, name: str = "weight") -> Tensor:
    """A parameter as floats; in a packed model it is int8, with a scale for each row beside it."""
    values, scale = getattr(module, name), getattr(module, name + "_scale", None)
    if scale is None:
        return values
    rows = scale.unsqueeze(-1) if values.dim() < 4 else scale[:, None, None, None]
    return values.to(scale) * rows


class Int8Linear(nn.Linear):
    """A linear layer of 8-bit weights."""

    def forward(self, x: Tensor) -> Tensor:
        """[…, in] → […, out]."""
        return F.linear(x, matrix(self), self.bias)


class Int8Conv(nn.Conv2d):
    """A convolution of 8-bit weights."""

    def forward(self, x: Tensor) -> Tensor:
        """[b, in, y, x] → [b, out, …]."""
        return F.conv2d(x, matrix(self), self.bias, self.stride)


class Int8Embedding(nn.Embedding):
    """A table of 8-bit rows."""

    weight_scale: Tensor

    def forward(self, ids: Tensor) -> Tensor:
        """[…] → […, d]."""
        scale = self.weight_scale[ids].unsqueeze(-1)
        return F.embedding(ids, self.weight).to(scale) * scale


INT8 = {nn.Linear: Int8Linear, nn.Conv2d: Int8Conv, nn.Embedding: Int8Embedding}


def compress(model: "BitGenModel") -> None:
    """Gives a model the layers of a packed file, without values: they are to be loaded."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, BitLinear):
                setattr(module, name, PackedBitLinear(child))
    parts = (model.vision, model.text_pool, model.image_pool, model.project)
    layers: Any = [layer for part in parts for layer in part.modules() if type(layer) in INT8]
    for layer in (model.embed, model.pos, *layers):
        _to_int8(layer, "weight", len(layer.weight))
        layer.__class__ = INT8[type(layer)]
    _to_int8(model.vision, "pos", model.vision.pos.shape[1])


def _to_int8(module: nn.Module, name: str, rows: int) -> None:
    shape = getattr(module, name).shape
    delattr(module, name)
    module.register_buffer(name, torch.zeros(shape, dtype=torch.int8))
    module.register_buffer(name + "_scale", torch.ones(rows))


# Encoders ----------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Self-attention of any kind."""

    def __init__(self, config: BitGenConfig):
        super().__init__()
        self.heads = config.heads
        self.qkv = BitLinear(config.dim, 3 * config.dim)
        self.proj = BitLinear(config.dim, config.dim)

    def forward(self, x: Tensor, mask: Tensor | None, cache=None, layer: int = 0) -> Tensor:
        """[b, t, d] → [b, t, d]; `cache` is transformers' cache of what came before."""
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, -1))
        if cache is not None:
            k, v = cache.update(k, v, layer)
        return self.proj(attend(q, k, v, mask))


class CrossAttention(nn.Module):
    """Attention to another sequence."""

    def __init__(self, config: BitGenConfig):
        super().__init__()
        self.heads = config.heads
        self.q = BitLinear(config.dim, config.dim)
        self.kv = BitLinear(config.dim, 2 * config.dim)
        self.proj = BitLinear(config.dim, config.dim)

    def seen(self, other: Tensor) -> Tensor:
        """Keys and values of another sequence [b, s, d]: [2, b, h, s, k]."""
        return torch.stack([split_heads(part, self.heads) for part in self.kv(other).chunk(2, -1)])

    def forward(self, x: Tensor, seen: Tensor, mask: Tensor | None) -> Tensor:
        """[b, t, d], with what `seen` gives → [b, t, d]."""
        return self.proj(attend(split_heads(self.q(x), self.heads), seen[0], seen[1], mask))


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
        seen: Tensor | None = None,
        seen_mask: Tensor | None = None,
        cache=None,
        layer: int = 0,
    ) -> Tensor:
        """[b, t, d] → [b, t, d]; `seen` is another sequence (`cross.seen`), read where its mask is
        True."""
        x = x + self.drop(self.attn(x, mask, cache, layer))
        if seen is not None:
            out = self.cross(x, seen, seen_mask)
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


# Memory and decoder ------------------------------------------------------------------------------


class Memory(nn.Module):
    """Larimar's slots: `gram` and `total` are the sums of what was written, read by solving."""

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

    def add(self, features: Tensor, codes: Tensor, sign: int) -> None:
        """Writes codes at unit features (sign 1), or takes them out again (sign −1)."""
        w = self.address(features)
        self.gram += sign * w.T @ w
        self.total += sign * w.T @ codes
        self.count += sign * len(w)


class Decoder(nn.Module):
    """Causal blocks that look at another sequence; a learned start stands before the text."""

    def __init__(self, config: BitGenConfig):
        super().__init__()
        self.start = nn.Parameter(torch.zeros(config.dim))
        self.blocks = nn.ModuleList(
            Block(config, cross=True, gated=False) for _ in range(config.decoder_layers)
        )
        self.norm = nn.RMSNorm(config.dim, EPS)

    def forward(self, x: Tensor, mask: Tensor, seen: Tensor, cache=None) -> Tensor:
        """[b, t, d], the start included → [b, t, d]; `seen` [b, l, 2, h, s, k] is what each
        block looks at."""
        for layer, block in enumerate(self.blocks):
            x = block(x, mask, seen[:, layer].transpose(0, 1), None, cache, layer)
        return self.norm(x)


# The model ---------------------------------------------------------------------------------------


class Queue(nn.Module):
    """Features of earlier batches, which only the trainer in jaxmodels fills."""

    def __init__(self, config: BitGenConfig):
        super().__init__()
        n, d = config.queue, config.dim
        self.register_buffer("text", torch.zeros(n, d))
        self.register_buffer("image", torch.zeros(n, d))
        self.register_buffer("ids", torch.zeros(n, dtype=torch.int32))
        self.register_buffer("total", torch.zeros((), dtype=torch.int32))


class BitGenGenerationConfig(GenerationConfig):
    """How captions are drawn. The `temperature` of a BitGenConfig is another: of similarities."""

    @classmethod
    def from_model_config(cls, model_config: Any) -> GenerationConfig:
        """The defaults, which nothing of the model's config changes."""
        return cls()


class BitGenWriter(PreTrainedModel, GenerationMixin):
    """The decoder as a causal language model, which `BitGenModel.generate` draws from.

    The first token stands for the decoder's learned start, whatever its id is.
    """

    def __init__(self, model: "BitGenModel"):
        config = model.config
        sizes = {"vocab_size": config.vocab, "hidden_size": config.dim}
        sizes |= {"num_hidden_layers": config.decoder_layers, "num_attention_heads": config.heads}
        super().__init__(PretrainedConfig(**sizes))
        self.model, self.generation_config = model, model.generation_config

    def forward(
        self,
        input_ids: Tensor,
        seen: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values=None,
        use_cache: bool | None = None,
        return_dict: bool = True,
    ) -> CausalLMOutputWithPast:
        """Logits after each of the next tokens [b, t]; `attention_mask` [b, s] counts those in the
        cache too, its padding stands on the left; `seen` as the decoder takes it."""
        b, t = input_ids.shape
        if attention_mask is None:
            past = 0 if past_key_values is None else past_key_values.get_seq_length()
            attention_mask = input_ids.new_ones(b, past + t)
        slots = torch.arange(attention_mask.shape[1], device=input_ids.device)
        own = slots[-t:, None]
        # A padding query sees itself, so that no softmax is over nothing.
        mask = (slots <= own) & attention_mask.bool()[:, None, None] | (slots == own)
        places = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -t:]
        start = self.model.decoder.start.expand(1, 1, -1)
        text = self.model.placed(input_ids, (places - 1).clamp(min=0))
        x = torch.where((places == 0)[..., None], start, text)
        x = self.model.decoder(x, mask, seen, past_key_values)
        logits = F.linear(x, matrix(self.model.embed))
        return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)


class BitGenModel(PreTrainedModel, GenerationMixin):
    """bitgen."""

    config_class = BitGenConfig
    generation_config_class = BitGenGenerationConfig
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
        if getattr(config, "packed", None):
            self.refuse_version(config.packed)
            compress(self)
        self.post_init()

    @staticmethod
    def refuse_version(packed: dict[str, Any]) -> None:
        """Raises ValueError for a packed file of another version."""
        if packed.get("version") != PACKED:
            raise ValueError(f"packed in version {packed.get('version')}: only {PACKED} is read")

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
        images: Tensor | None = None,
        return_contrastive_features: bool = False,
        **kwargs,
    ) -> BitGenOutput:
        """Embeddings of texts, features of texts and images, logits of targets.

        Args:
            input_ids: int64 [b, t], at most `context` tokens.
            pixel_values: [b, 3, y, x], values in [0, 1], not normalised; of any size.
            targets: int64 [b, u]; each is predicted from those before it.
            noise: [b, m], standard normal, of the memory's addresses; None reads at their mean.
            attention_mask: [b, t], 1 = token, 0 = padding, on either side.
            images: another name of `pixel_values`.
            return_contrastive_features: whether the output has `contrastive_features`.
            kwargs: of what other models take, only None and False, which ask for nothing.

        Raises:
            TypeError: an unknown argument.
            ValueError: a text is empty or longer than the context; images are not floats
                [b, 3, y, x], are given under both names, or are not as many as the texts.
        """
        refuse_unknown(kwargs)
        pixels = given_pixels(pixel_values, images)
        if pixels is not None and len(pixels) != len(input_ids):
            raise ValueError(f"{len(pixels)} images do not go with {len(input_ids)} texts")
        x, alone, pooled, mask = self.read_text(input_ids, attention_mask)
        text_features = self.text_pool(pooled)
        embeddings, seen, image_features = alone, None, None
        if pixels is not None:
            y = self.run(self.image, self.patches(pixels), None, upper=False)
            seen = self.image_norm(self.run(self.image, y, None, upper=True))
            image_features = self.image_pool(seen.mean(1))
            embeddings = self.together(x, mask, y)[0]
        logits = None
        if targets is not None:
            features = text_features if image_features is None else image_features
            logits = self.written(targets[:, :-1], self.context(seen, features, noise))
        contrastive = None
        if return_contrastive_features:
            contrastive = {"text_features": text_features, "temperature": self.temperature}
            if image_features is not None:
                contrastive["image_features"] = image_features
        return BitGenOutput(embeddings, text_features, image_features, logits, contrastive)

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Unit vectors of texts alone, [b, d]; arguments as those of a call."""
        return self.text_pool(self.read_text(input_ids, attention_mask)[2])

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Unit vectors of images alone, [b, d]."""
        return self.image_pool(self.image_tokens(pixel_values).mean(1))

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        images: Tensor | None = None,
        **options,
    ):
        """Captions of images, int64 [b, t], by transformers' `generate`.

        Args:
            pixel_values: [b, 3, y, x], values in [0, 1].
            input_ids: [b, t], how each caption begins; what is returned begins with it.
            attention_mask: [b, t], 1 = token, 0 = padding of `input_ids`.
            images: another name of `pixel_values`.
            options: of transformers' `generate`; by default the likeliest tokens, up to the end
                of the caption or of the context.

        Raises:
            ValueError: no images; a prompt that fills the context; an unknown option.
        """
        pixels = given_pixels(pixel_values, images)
        if pixels is None:
            raise ValueError("give the images to caption as pixel_values")
        seen = self.image_tokens(pixels)
        context = self.context(seen, self.image_pool(seen.mean(1)), None)
        return self.continued(context, input_ids, attention_mask, options)

    @torch.no_grad()
    def write(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
    ) -> None:
        """Remembers texts, to be found by their images, or by themselves without images."""
        self._remember(input_ids, attention_mask, pixel_values, 1)

    @torch.no_grad()
    def forget(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
    ) -> None:
        """Takes texts out of the memory that were written with the same arguments."""
        self._remember(input_ids, attention_mask, pixel_values, -1)

    @torch.no_grad()
    def recollect(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        **options,
    ):
        """What the memory has for images or else for texts, in words: as `generate` returns it."""
        if pixel_values is not None:
            features = self.get_image_features(pixel_values)
        elif input_ids is not None:
            features = self.get_text_features(input_ids, attention_mask)
        else:
            raise ValueError("give images as pixel_values, or texts as input_ids")
        return self.continued(self.context(None, features, None), None, None, options)

    def _remember(self, input_ids, attention_mask, pixel_values, sign: int) -> None:
        pooled = self.read_text(input_ids, attention_mask)[2]
        if pixel_values is None:
            keys = self.text_pool(pooled)
        elif len(pixel_values) == len(input_ids):
            keys = self.get_image_features(pixel_values)
        else:
            raise ValueError(f"{len(pixel_values)} images do not go with {len(input_ids)} texts")
        self.memory.add(keys, self.memory.codes(pooled), sign)

    def continued(self, context: Tensor, input_ids, attention_mask, options: dict[str, Any]):
        """Texts after prompts, given what the decoder sees [b, s, d]; see `generate`."""
        device = context.device
        if input_ids is None:
            input_ids = torch.zeros(len(context), 0, dtype=torch.long, device=device)
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        order = torch.argsort(real, dim=1, stable=True)  # padding goes to the left
        first = torch.ones(len(context), 1, dtype=torch.long, device=device)
        prompt = input_ids.shape[1]
        room = self.config.context - prompt
        if room < 1:
            raise ValueError(f"a prompt of {prompt} tokens leaves no room to write")
        most = options.pop("max_length", None)
        wanted = options.pop("max_new_tokens", None) or (room if most is None else most - prompt)
        writer: Any = BitGenWriter(self)
        out = writer.generate(
            torch.cat([0 * first, input_ids.gather(1, order)], 1),
            attention_mask=torch.cat([first, real.gather(1, order)], 1),
            seen=self.seen_by_decoder(context),
            max_new_tokens=min(wanted, room),
            **options,
        )
        if isinstance(out, Tensor):
            return out[:, 1:]
        out.sequences = out.sequences[:, 1:]
        return out

    def read_text(
        self, input_ids: Tensor, attention_mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Texts [b, t] after the layers that see no image, and after all without an image (both
        [b, t, d]); the mean of the latter [b, d]; the mask of tokens [b, 1, 1, t]."""
        if not input_ids.shape[1]:
            raise ValueError("a text has no token")
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        real = real == 1
        real[:, 0] |= ~real.any(1)  # one token at least
        order = torch.arange(input_ids.shape[1], device=input_ids.device)
        places = torch.where(real, real.long().cumsum(-1) - 1, order)
        mask = real[:, None, None]
        x = F.dropout(self.placed(input_ids, places), self.config.dropout, self.training)
        x = self.run(self.text, x, mask, upper=False)
        alone = self.text_norm(self.run(self.text, x, mask, upper=True))
        weight = (real / real.sum(1, keepdim=True)).to(alone)
        return x, alone, (alone * weight[..., None]).sum(1), mask

    def image_tokens(self, pixels: Tensor) -> Tensor:
        """Images [b, 3, y, x] as tokens [b, p, d], without a text."""
        y = self.run(self.image, self.patches(checked(pixels)), None, upper=False)
        return self.image_norm(self.run(self.image, y, None, upper=True))

    def run(self, blocks: nn.ModuleList, x: Tensor, mask: Tensor | None, upper: bool) -> Tensor:
        """[b, t, d] through the blocks that see the other side, each alone, or those before."""
        lower = len(blocks) - self.config.fused
        for block in blocks[lower:] if upper else blocks[:lower]:
            x = block(x, mask)
        return x

    def together(self, x: Tensor, mask: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Both sides through the blocks in which they see each other."""
        fused = self.config.fused
        pairs: Any = zip(
            self.text[len(self.text) - fused :], self.image[len(self.image) - fused :], strict=True
        )
        for text, image in pairs:
            of_image, of_text = text.cross.seen(y), image.cross.seen(x)
            x, y = text(x, mask, of_image), image(y, None, of_text, mask)
        return self.text_norm(x), self.image_norm(y)

    def context(self, seen: Tensor | None, features: Tensor, noise: Tensor | None) -> Tensor:
        """What the decoder sees: the image's tokens, and one of what the memory has: [b, s, d]."""
        token = self.memory.out(self.memory(features, noise))[:, None]
        return token if seen is None else torch.cat([seen, token], 1)

    def seen_by_decoder(self, context: Tensor) -> Tensor:
        """The context as keys and values of each of the decoder's blocks, [b, l, 2, h, s, k]."""
        blocks: Any = self.decoder.blocks
        return torch.stack([block.cross.seen(context).transpose(0, 1) for block in blocks], 1)

    def written(self, tokens: Tensor, context: Tensor) -> Tensor:
        """Logits after the start and after each token, [b, t + 1, v]."""
        x = self.placed(tokens, torch.arange(tokens.shape[1], device=tokens.device))
        x = torch.cat([self.decoder.start.expand(len(x), 1, -1), x], 1)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        x = self.decoder(x, mask[None, None], self.seen_by_decoder(context))
        return F.linear(x, matrix(self.embed))

    def placed(self, tokens: Tensor, places: Tensor) -> Tensor:
        """Tokens [b, t] at their places ([t] or [b, t]) as vectors [b, t, d]."""
        if tokens.shape[1] > self.config.context:
            raise ValueError(f"a text is longer than the context of {self.config.context}")
        return self.embed(tokens) + self.pos(places)

    def patches(self, images: Tensor) -> Tensor:
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


# Checks of arguments -----------------------------------------------------------------------------


def refuse_unknown(kwargs: dict[str, Any]) -> None:
    """Raises TypeError for an argument that is not used; libraries pass None or False for many."""
    for name, value in kwargs.items():
        if value is not None and value is not False:
            raise TypeError(f"forward() got an unexpected keyword argument {name!r}")


def given_pixels(pixel_values: Tensor | None, images: Tensor | None) -> Tensor | None:
    """The images of a call, under either name; None without any."""
    if pixel_values is not None and images is not None:
        raise ValueError("pixel_values and images are two names for the same: give one")
    pixels = images if pixel_values is None else pixel_values
    return None if pixels is None else checked(pixels)


def checked(pixels: Tensor) -> Tensor:
    """The images, which must be floats [b, 3, y, x]."""
    if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point():
        raise ValueError(
            "images are floats [b, 3, y, x] with values in [0, 1], not "
            f"{str(pixels.dtype).removeprefix('torch.')} {list(pixels.shape)}"
        )
    return pixels
