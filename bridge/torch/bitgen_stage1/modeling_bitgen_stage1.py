"""BitGen Stage 1 in PyTorch, for transformers: captions and images (seed 004).

This file stands alone and travels with every model directory, so that
`AutoModel.from_pretrained(DIR, trust_remote_code=True)` opens it.

Notable: the fused tokens replace the text; the encoder is post-norm and sees padding; the decoder
is ternary by 8 bits in evaluation, and in full precision when training; the text's feature is its
first token's. Deterministic in evaluation unless noise is given. The queues and the memory's
counters are kept, and only the trainer in jaxmodels (or the seed's) fills them.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

EPS, TOWER_EPS = 1e-5, 1e-6
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
READ = 5  # slots of the memory that count for a token


# Configuration and output ------------------------------------------------------------------------


class BitGenStage1Config(PretrainedConfig):
    """Sizes of one bitgen_stage1; `dinov2` holds those of the image tower."""

    model_type = "bitgen_stage1"

    def __init__(
        self,
        vocab: int = 50_257,
        dim: int = 128,
        layers: int = 4,
        heads: int = 4,
        hidden: int = 256,
        decoder_layers: int = 2,
        context: int = 256,
        slots: int = 32,
        queue: int = 4096,
        image_size: int = 224,
        dropout: float = 0.1,
        dinov2: dict[str, Any] | None = None,
        **kwargs,
    ):
        self.vocab = vocab
        self.dim = dim
        self.layers = layers
        self.heads = heads
        self.hidden = hidden
        self.decoder_layers = decoder_layers
        self.context = context
        self.slots = slots
        self.queue = queue
        self.image_size = image_size
        self.dropout = dropout
        base = {"dim": 768, "layers": 12, "heads": 12, "hidden": 3072}
        self.dinov2 = {**base, "patch": 14, "image_size": 518, **(dinov2 or {})}
        super().__init__(**{"tie_word_embeddings": False, **kwargs})


@dataclass
class BitGenStage1Output(ModelOutput):
    """What the model gives."""

    embeddings: Tensor | None = None
    """[b, t, d]: what the encoder makes of the tokens."""
    text_features: Tensor | None = None
    """[b, d], unit vectors."""
    image_features: Tensor | None = None
    """[b, d], unit vectors; None without images."""
    decoder_logits: Tensor | None = None
    """[b, u, v], of the targets; None without them."""
    contrastive_features: dict[str, Tensor] | None = None
    """As BitGen's card names them: the features, the queues [d, n] of earlier ones and the
    temperature of similarities; empty without images, None unless asked for."""


# The image tower: DINOv2 -------------------------------------------------------------------------


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[b, t, d] → [b, h, t, k]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, rate: float = 0.0, causal: bool = False):
    """Softmax attention of [b, t, d] at scale 1/sqrt(k)."""
    q, k, v = (split_heads(x, heads) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=causal)
    return out.transpose(1, 2).flatten(-2)


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


class TowerBlock(nn.Module):
    """Pre-norm; each branch is scaled by a learned vector."""

    def __init__(self, size: dict[str, Any]):
        super().__init__()
        self.norm1 = nn.LayerNorm(size["dim"], TOWER_EPS)
        self.attn = TowerAttention(size["dim"], size["heads"])
        self.ls1 = nn.Parameter(torch.ones(size["dim"]))
        self.norm2 = nn.LayerNorm(size["dim"], TOWER_EPS)
        self.mlp = TowerMlp(size["dim"], size["hidden"])
        self.ls2 = nn.Parameter(torch.ones(size["dim"]))

    def forward(self, x: Tensor) -> Tensor:
        """[b, t, h] → [b, t, h]."""
        x = x + self.ls1 * self.attn(self.norm1(x))
        return x + self.ls2 * self.mlp(self.norm2(x))


class Tower(nn.Module):
    """DINOv2, whose positions are interpolated as transformers does it."""

    def __init__(self, size: dict[str, Any]):
        super().__init__()
        dim, patch = size["dim"], size["patch"]
        self.side = size["image_size"] // patch
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        self.mask = nn.Parameter(torch.zeros(1, dim))  # never read, and part of every checkpoint
        self.pos = nn.Parameter(torch.zeros(1, 1 + self.side**2, dim))
        self.patch = nn.Conv2d(3, dim, patch, patch)
        self.blocks = nn.ModuleList(TowerBlock(size) for _ in range(size["layers"]))
        self.norm = nn.LayerNorm(dim, TOWER_EPS)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [b, 3, y, x] → the class token and the patches, [b, 1 + n, h]."""
        x = self.patch(images)
        rows, columns = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2) + self.positions(rows, columns)
        cls = (self.cls + self.pos[:, :1]).expand(len(x), -1, -1)
        x = torch.cat([cls, x], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def positions(self, rows: int, columns: int) -> Tensor:
        """Positions of a grid of patches, [1, n, h]."""
        grid = self.pos[:, 1:]
        if rows == columns == self.side:
            return grid
        wide = torch.promote_types(grid.dtype, torch.float32)
        square = grid.to(wide).unflatten(1, (self.side, self.side)).permute(0, 3, 1, 2)
        resized = F.interpolate(square, (rows, columns), mode="bicubic", align_corners=False)
        return resized.flatten(2).transpose(1, 2).to(grid.dtype)


# Fusion, memory and encoder ----------------------------------------------------------------------


class Mlp(nn.Module):
    """Two layers with ReLU between."""

    def __init__(self, fan_in: int, hidden: int, fan_out: int, rate: float):
        super().__init__()
        self.rate = rate
        self.up, self.out = nn.Linear(fan_in, hidden), nn.Linear(hidden, fan_out)

    def forward(self, x: Tensor) -> Tensor:
        """[…, in] → […, out]."""
        return self.out(F.dropout(F.relu(self.up(x)), self.rate, self.training))


class Fusion(nn.Module):
    """Puts the image into every token, and makes the features that are contrasted."""

    image_queue: Tensor
    text_queue: Tensor
    queue_ptr: Tensor

    def __init__(self, config: BitGenStage1Config):
        super().__init__()
        d = config.dim
        self.temperature = nn.Parameter(torch.tensor(0.07))
        for name in ("image_queue", "text_queue"):
            self.register_buffer(name, F.normalize(torch.randn(d, config.queue), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))
        self.project = nn.Linear(config.dinov2["dim"], d)
        self.text, self.image = nn.Linear(d, d), nn.Linear(d, d)
        self.text_itc, self.image_itc = nn.Linear(d, d), nn.Linear(d, d)
        self.text_pooler, self.image_pooler = nn.Linear(d, d), nn.Linear(d, d)  # never asked
        self.text_pooler_itc, self.image_pooler_itc = nn.Linear(d, d), nn.Linear(d, d)
        self.mlp = Mlp(2 * d, 2 * d, d, config.dropout)

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        """Tokens [b, t, d] and an image each [b, d] → [b, t, d]."""
        words = self.text(text)
        seen = self.image(image)[:, None].expand_as(words)
        return self.mlp(torch.cat([words, seen], -1))

    def text_features(self, text: Tensor) -> Tensor:
        """Of the first token, before any fusion: [b, d]."""
        pooled = self.text_pooler_itc(self.text_itc(text[:, 0]))
        return F.normalize(pooled.tanh(), dim=-1, eps=1e-8)

    def image_features(self, image: Tensor) -> Tensor:
        """[b, d] → [b, d]."""
        return F.normalize(self.image_pooler_itc(self.image_itc(image)).tanh(), dim=-1, eps=1e-8)


class Memory(nn.Module):
    """Adds to every token what the five most similar slots hold."""

    read_count: Tensor
    write_count: Tensor
    quality: Tensor
    age: Tensor

    def __init__(self, config: BitGenStage1Config):
        super().__init__()
        d, slots = config.dim, config.slots
        self.mean = nn.Parameter(torch.zeros(slots, d))
        self.logvar = nn.Parameter(torch.zeros(1))
        for name, value in (("read_count", 0), ("write_count", 0), ("quality", 1), ("age", 0)):
            self.register_buffer(name, torch.full((slots,), float(value)))
        self.query, self.out, self.norm = nn.Linear(d, d), nn.Linear(d, d), nn.LayerNorm(d, EPS)

    def forward(self, x: Tensor, noise: Tensor | None) -> Tensor:
        """[b, t, d] → [b, t, d]; noise [m, d] is drawn by the caller, None reads the mean."""
        return self.recall(x, noise)[0]

    def recall(self, x: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """As `forward`; also the queries [b, t, d], and the slots that were read [b, t, k]."""
        queries = self.query(x)
        memory = self.mean if noise is None else self.mean + (self.logvar / 2).exp() * noise
        near = F.normalize(queries, dim=-1) @ F.normalize(memory, dim=-1).T
        scores, slots = (near * self.quality).topk(min(READ, len(memory)))
        found = (scores.softmax(-1)[..., None] * memory[slots]).sum(-2)
        return self.norm(x + self.out(queries + 0.5 * found)), queries, slots


class Attention(nn.Module):
    """Every token sees every token, padding included."""

    def __init__(self, config: BitGenStage1Config):
        super().__init__()
        self.heads, self.rate = config.heads, config.dropout
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.proj = nn.Linear(config.dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        """[b, t, d] → [b, t, d]."""
        rate = self.rate if self.training else 0.0
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.proj(attend(q, k, v, self.heads, rate))


class Block(nn.Module):
    """Post-norm: attention, then feed-forward."""

    def __init__(self, config: BitGenStage1Config):
        super().__init__()
        self.rate = config.dropout
        self.attn = Attention(config)
        self.norm1 = nn.LayerNorm(config.dim, EPS)
        self.mlp = Mlp(config.dim, config.hidden, config.dim, config.dropout)
        self.norm2 = nn.LayerNorm(config.dim, EPS)

    def forward(self, x: Tensor) -> Tensor:
        """[b, t, d] → [b, t, d]."""
        x = self.norm1(x + F.dropout(self.attn(x), self.rate, self.training))
        return self.norm2(x + F.dropout(self.mlp(x), self.rate, self.training))


# Decoder -----------------------------------------------------------------------------------------


class BitLinear(nn.Module):
    """Ternary weights by 8-bit activations in evaluation, plain when training."""

    weight_scale: Tensor
    input_scale: Tensor

    def __init__(self, fan_in: int, fan_out: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(fan_out, fan_in) * (2 / fan_in) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(fan_out))
        self.register_buffer("weight_scale", torch.ones(1))  # both are never read
        self.register_buffer("input_scale", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """[…, in] → […, out]; the scale of activations is that of all of x."""
        if self.training:
            return F.linear(x, self.weight, self.bias)
        gamma = self.weight.abs().mean().clamp(min=1e-5)
        ternary = self.weight.sign() * (self.weight.abs() > gamma / 2)
        alpha = x.abs().max().clamp(min=1e-8) / 127
        values = (x / alpha).round().clamp(-128, 127)
        return F.linear(values, ternary) * gamma * alpha + self.bias


class DecoderAttention(nn.Module):
    """Causal self-attention."""

    def __init__(self, config: BitGenStage1Config):
        super().__init__()
        self.heads = config.heads
        self.q, self.k, self.v, self.proj = (BitLinear(config.dim, config.dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """[b, u, d] → [b, u, d]."""
        return self.proj(attend(self.q(x), self.k(x), self.v(x), self.heads, causal=True))


class DecoderMlp(nn.Module):
    """Two ternary layers with the exact GELU between."""

    def __init__(self, config: BitGenStage1Config):
        super().__init__()
        self.rate = config.dropout
        self.up = BitLinear(config.dim, config.hidden)
        self.out = BitLinear(config.hidden, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        """[b, u, d] → [b, u, d]."""
        return self.out(F.dropout(F.gelu(self.up(x)), self.rate, self.training))


class DecoderBlock(nn.Module):
    """Pre-norm: attention, the text as one vector, feed-forward; norm2 is never asked."""

    def __init__(self, config: BitGenStage1Config):
        super().__init__()
        self.rate = config.dropout
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(config.dim, EPS) for _ in range(3))
        self.attn = DecoderAttention(config)
        self.context = BitLinear(config.dim, config.dim)
        self.mlp = DecoderMlp(config)

    def forward(self, y: Tensor, source: Tensor) -> Tensor:
        """[b, u, d] and the encoder's mean [b, d] → [b, u, d]."""
        y = y + F.dropout(self.attn(self.norm1(y)), self.rate, self.training)
        context = self.context(source)[:, None].expand_as(y)
        y = y + F.dropout(context, self.rate, self.training)
        return y + F.dropout(self.mlp(self.norm3(y)), self.rate, self.training)


class Decoder(nn.Module):
    """Predicts a text from itself and from what the encoder made of it."""

    def __init__(self, config: BitGenStage1Config):
        super().__init__()
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.dim, EPS)
        self.head = BitLinear(config.dim, config.vocab)

    def forward(self, y: Tensor, embeddings: Tensor) -> Tensor:
        """Embedded targets [b, u, d] and embeddings [b, t, d] → logits [b, u, v]."""
        source = embeddings.mean(1)
        for block in self.blocks:
            y = block(y, source)
        return self.head(self.norm(y))


# The model ---------------------------------------------------------------------------------------


class BitGenStage1Model(PreTrainedModel):
    """BitGen Stage 1."""

    config_class = BitGenStage1Config
    main_input_name = "input_ids"

    def __init__(self, config: BitGenStage1Config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab, config.dim)
        self.pos = nn.Embedding(config.context, config.dim)
        self.vision = Tower(config.dinov2)
        self.fusion = Fusion(config)
        self.memory = Memory(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.dim, EPS)
        self.decoder = Decoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding."""
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
    ) -> BitGenStage1Output:
        """Embeddings of texts, features of texts and images, logits of targets.

        Args:
            input_ids: int64 [b, t], at most `context` tokens.
            pixel_values: [b, 3, y, x], values in [0, 1], not normalised; of any size.
            targets: int64 [b, u]; each is predicted from those up to and including it.
            noise: [m, d], standard normal, of the memory; None reads its mean.
            attention_mask: [b, t] of ones. The model was trained with padding that is seen like
                any token, so that no padding can be masked.
            images: another name of `pixel_values`.
            return_contrastive_features: whether the output has `contrastive_features`.
            kwargs: of what other models take, only None and False, which ask for nothing.

        Raises:
            TypeError: an unknown argument.
            ValueError: a text is longer than the context; a mask that hides something; images
                are not floats [b, 3, y, x], are given under both names, or are not as many as
                the texts.
        """
        refuse_unknown(kwargs)
        if attention_mask is not None and not bool((attention_mask == 1).all()):
            raise ValueError(
                "BitGen Stage 1 has no mask: it was trained to see padding. Leave attention_mask "
                "out, or give texts of different lengths one by one"
            )
        pixels = given_pixels(pixel_values, images)
        if pixels is not None and len(pixels) != len(input_ids):
            raise ValueError(f"{len(pixels)} images do not go with {len(input_ids)} texts")
        text = self.embedded(input_ids)
        x, image_features = text, None
        if pixels is not None:
            image = self.seen(pixels)
            x, image_features = self.fusion(text, image), self.fusion.image_features(image)
        x = self.memory(x, noise)
        for block in self.blocks:
            x = block(x)
        embeddings = self.norm(x)
        logits = None
        if targets is not None:
            logits = self.decoder(self.embedded(targets), embeddings)
        features = self.fusion.text_features(text)
        contrastive = None
        if return_contrastive_features:
            contrastive = (
                {} if image_features is None else self.contrastive(features, image_features)
            )
        return BitGenStage1Output(embeddings, features, image_features, logits, contrastive)

    def contrastive(self, text: Tensor, image: Tensor) -> dict[str, Tensor]:
        """Features [b, d] with all that their loss needs."""
        return {
            "text_features": text,
            "image_features": image,
            "text_queue": self.fusion.text_queue,
            "image_queue": self.fusion.image_queue,
            "temperature": self.fusion.temperature,
        }

    def get_text_features(self, input_ids: Tensor) -> Tensor:
        """Unit vectors of texts alone, [b, d]."""
        return self.fusion.text_features(self.embedded(input_ids))

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Unit vectors of images alone, [b, d]."""
        return self.fusion.image_features(self.seen(checked(pixel_values)))

    def embedded(self, tokens: Tensor) -> Tensor:
        """Tokens [b, t] and their positions as vectors [b, t, d]."""
        if tokens.shape[1] > self.config.context:
            raise ValueError(f"a text is longer than the context of {self.config.context}")
        x = self.embed(tokens) + self.pos.weight[: tokens.shape[1]]
        return F.dropout(x, self.config.dropout, self.training)

    def seen(self, images: Tensor) -> Tensor:
        """Images [b, 3, y, x] with values in [0, 1] as one vector each, [b, d]."""
        side = (self.config.image_size, self.config.image_size)
        if tuple(images.shape[-2:]) != side:
            images = F.interpolate(images, side, mode="bilinear", align_corners=False)
        mean, std = (images.new_tensor(values)[:, None, None] for values in (MEAN, STD))
        return self.fusion.project(self.vision((images - mean) / std)[:, 1:].mean(1))


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
