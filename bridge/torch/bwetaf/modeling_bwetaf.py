"""bwetaf in PyTorch, for transformers: a Transformer with rotated embeddings (seed 003).

This file stands alone and travels with every model directory, so that
`AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True)` opens it.

Notable: positions enter by rotating the embeddings, over their full width and in an unusual
pairing; SwiGLU takes the value first and the gate second; RMSNorm's eps is 1e-8; there is no
final norm; the head is the embedding, and has no parameter of its own; the residual stream is
always float32.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast


class BwetafConfig(PretrainedConfig):
    """Sizes of one bwetaf; transformers' own names of them are aliases."""

    model_type = "bwetaf"
    attribute_map: ClassVar = {
        "vocab_size": "vocab",
        "hidden_size": "dim",
        "num_hidden_layers": "layers",
        "num_attention_heads": "heads",
        "intermediate_size": "hidden",
        "max_position_embeddings": "context",
    }

    def __init__(
        self,
        vocab: int = 50_260,
        tokens: int = 50_257,
        dim: int = 512,
        layers: int = 8,
        heads: int | list[int] = 8,
        hidden: int = 1536,
        context: int = 2048,
        dropout: float = 0.1,
        positions: str = "rotate",
        rotate_qk: bool = False,
        embed_scale: float = 1.0,
        residual_scale: float = 1.0,
        init_range: float = 0.02,
        **kwargs,
    ):
        self.vocab = vocab
        self.tokens = tokens
        self.dim = dim
        self.layers = layers
        self.heads = heads if isinstance(heads, int) else list(heads)
        self.hidden = hidden
        self.context = context
        self.dropout = dropout
        self.positions = positions
        self.rotate_qk = rotate_qk
        self.embed_scale = embed_scale
        self.residual_scale = residual_scale
        self.init_range = init_range
        super().__init__(**kwargs)


def angles(positions: Tensor, width: int) -> Tensor:
    """Angles `position · 10000^(−2j/width)`, float32 [b, t, width/2]."""
    exponent = torch.arange(0, width, 2, device=positions.device).float() / width
    return positions[..., None].float() * 10_000.0**-exponent


def place(x: Tensor, positions: Tensor, rotate: bool) -> Tensor:
    """Embeddings [b, t, d] that know their positions [b, t].

    Rotated, each angle stands twice in a row, as if neighbours were pairs, while the halves of
    the width are what is paired: the form that the published weights know.
    """
    angle = angles(positions, x.shape[-1])
    if not rotate:
        return x + torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)
    cos, sin = (wave.repeat_interleave(2, -1) for wave in (angle.cos(), angle.sin()))
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def turn(x: Tensor, angle: Tensor) -> Tensor:
    """Turns the pairs (x0, x1), (x2, x3), … of x [b, h, t, k] by angle [b, t, k/2]."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2).type_as(x)


class Norm(nn.Module):
    """RMSNorm: x / sqrt(mean(x²) + 1e-8) · weight, in the weight's dtype."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """float32 [b, t, d] → [b, t, d]."""
        root = torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-8)
        return (x * root * self.weight).type_as(self.weight)


class Attention(nn.Module):
    """Causal self-attention; the output projection alone has a bias."""

    def __init__(self, config: BwetafConfig, layer: int):
        super().__init__()
        self.layer, self.rotate = layer, config.rotate_qk
        self.heads = config.heads if isinstance(config.heads, int) else config.heads[layer]
        self.q = nn.Linear(config.dim, config.dim, bias=False)
        self.k = nn.Linear(config.dim, config.dim, bias=False)
        self.v = nn.Linear(config.dim, config.dim, bias=False)
        self.proj = nn.Linear(config.dim, config.dim)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None, cache) -> Tensor:
        """x [b, t, d]; mask True where a key is seen, None for plain causal."""
        q, k, v = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        if self.rotate:
            angle = angles(positions, q.shape[-1])
            q, k = turn(q, angle), turn(k, angle)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.proj(out.transpose(1, 2).flatten(-2))


class Mlp(nn.Module):
    """SwiGLU, value first: w · silu(v) with (w | v) = wv(x)."""

    def __init__(self, config: BwetafConfig):
        super().__init__()
        self.wv = nn.Linear(config.dim, 2 * config.hidden, bias=False)
        self.out = nn.Linear(config.hidden, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        """[b, t, d] → [b, t, d]."""
        w, v = self.wv(x).chunk(2, -1)
        return self.out(w * F.silu(v))


class Block(GradientCheckpointingLayer):
    """Pre-norm attention and feed-forward; computed again backwards if asked for."""

    def __init__(self, config: BwetafConfig, layer: int):
        super().__init__()
        self.dropout, self.residual_scale = config.dropout, config.residual_scale
        self.norm1 = Norm(config.dim)
        self.attn = Attention(config, layer)
        self.norm2 = Norm(config.dim)
        self.mlp = Mlp(config)

    def forward(
        self, x: Tensor, positions: Tensor, mask: Tensor | None, past_key_values=None
    ) -> Tensor:
        """float32 [b, t, d] → [b, t, d]."""
        out = self.attn(self.norm1(x), positions, mask, past_key_values)
        x = F.dropout(out, self.dropout, self.training) + self.residual_scale * x
        return self.mlp(self.norm2(x)) + self.residual_scale * x


class BwetafForCausalLM(PreTrainedModel, GenerationMixin):
    """bwetaf with its head; `generate` works with and without the cache."""

    config_class = BwetafConfig
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a mean over the batch, whatever a trainer counts
    _supports_sdpa = True
    _input_embed_layer = "embed"
    _no_split_modules = ["Block"]  # noqa: RUF012 (the base class declares it so)

    def __init__(self, config: BwetafConfig):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab, config.dim)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.layers))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """The seed's initialisation, of what no checkpoint fills."""
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.init_range)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, Norm):
            nn.init.ones_(module.weight)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values=None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast | tuple:
        """Logits of the token after each token.

        Args:
            input_ids: int64 [b, t].
            attention_mask: [b, s], 1 for real tokens. s counts the tokens in the cache too.
            position_ids: [b, t]; by default counted from the first real token.
            past_key_values: a transformers cache of what came before.
            inputs_embeds: [b, t, d] in place of ids: rows of the embedding, not yet scaled or
                placed.
            labels: [b, t], usually `input_ids`; shifted here; −100 is left out of the mean.
            use_cache: whether to return a cache.
            logits_to_keep: only this many last positions get logits; 0 means all.
            return_dict: whether the output has names or is a tuple.
            kwargs: of what other models take, only None and False, which ask for nothing.

        Raises:
            TypeError: an unknown argument.
        """
        refuse_unknown(kwargs)
        x = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        mask, positions = visible(x.shape[1], attention_mask, past, x.device)
        positions = positions if position_ids is None else position_ids
        x = place(x.float() * self.config.embed_scale, positions, self.config.positions == "rotate")
        for block in self.blocks:
            x = block(x, positions, mask, past_key_values=past_key_values)
        weight = self.embed.weight
        logits = F.linear(x[:, -logits_to_keep:].type_as(weight), weight).float()
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        out = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)
        return out.to_tuple() if return_dict is False else out


def refuse_unknown(kwargs: dict[str, Any]) -> None:
    """Raises TypeError for an argument that is not used; libraries pass None or False for many."""
    for name, value in kwargs.items():
        if value is not None and value is not False:
            raise TypeError(f"forward() got an unexpected keyword argument {name!r}")


def visible(
    t: int, real: Tensor | None, past: int, device: torch.device
) -> tuple[Tensor | None, Tensor]:
    """Which keys each of t queries may see ([b, 1, t, s], or None for all earlier), and positions.

    Padding on the left is not counted in positions; a padding query sees itself, so that no
    softmax is over nothing.
    """
    slots = torch.arange(past + t, device=device)
    earlier = slots <= slots[past:, None]
    if real is None or bool(real.all()):
        return (None if past == 0 else earlier[None, None]), slots[None, past:]
    mask = earlier & real.bool()[:, None, None] | (slots == slots[past:, None])
    first = real.long().argmax(-1, keepdim=True)
    return mask, (slots - first).clamp(min=0)[:, past:]
