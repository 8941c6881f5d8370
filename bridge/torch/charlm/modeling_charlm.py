"""charlm in PyTorch, for transformers: a character-level Transformer (seed 002).

This file stands alone and travels with every model directory, so that
`AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True)` opens it.

Notable: rotary pairs are interleaved; SwiGLU takes the value first and the gate second;
the head is untied and has a bias; LayerNorm eps is 1e-6.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

EPS = 1e-6


class CharLMConfig(PretrainedConfig):
    """Sizes of one charlm; transformers' own names of them are aliases."""

    model_type = "charlm"
    attribute_map: ClassVar = {
        "vocab_size": "vocab",
        "hidden_size": "dim",
        "num_hidden_layers": "layers",
        "num_attention_heads": "heads",
        "max_position_embeddings": "context",
    }

    def __init__(
        self,
        vocab: int = 256,
        dim: int = 256,
        layers: int = 6,
        heads: int = 8,
        mlp_ratio: float = 4.0,
        context: int = 1024,
        dropout: float = 0.5,
        dropout_end: float | None = None,
        dropout_scale: int = 1000,
        **kwargs,
    ):
        self.vocab = vocab
        self.dim = dim
        self.layers = layers
        self.heads = heads
        self.mlp_ratio = mlp_ratio
        self.context = context
        self.dropout = dropout
        self.dropout_end = dropout_end
        self.dropout_scale = dropout_scale
        super().__init__(**{"tie_word_embeddings": False, **kwargs})


def refuse_unknown(kwargs: dict[str, Any]) -> None:
    """Raises TypeError for an argument that is not used; libraries pass None or False for many."""
    for name, value in kwargs.items():
        if value is not None and value is not False:
            raise TypeError(f"forward() got an unexpected keyword argument {name!r}")


def rotate(x: Tensor, angle: Tensor) -> Tensor:
    """Turns the pairs (x0, x1), (x2, x3), … of x [b, h, t, k] by angle [b, t, k/2]."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2).type_as(x)


def dropout(x: Tensor, rate: Tensor | float) -> Tensor:
    """Dropout at a rate that may be a tensor, so that another rate is not another program."""
    if not isinstance(rate, Tensor):
        return F.dropout(x, rate)
    kept = torch.rand(x.shape, device=x.device) >= rate
    return torch.where(kept, x / (1 - rate), 0)


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, config: CharLMConfig, layer: int):
        super().__init__()
        self.heads, self.layer = config.heads, layer
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.proj = nn.Linear(config.dim, config.dim)

    def forward(self, x: Tensor, angle: Tensor, mask: Tensor | None, cache) -> Tensor:
        """x [b, t, d]; mask True where a key is seen, None for plain causal."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q, k = rotate(q, angle), rotate(k, angle)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.proj(out.transpose(1, 2).flatten(-2))


class Mlp(nn.Module):
    """SwiGLU, value first: w · silu(v) with (w | v) = wv(x)."""

    def __init__(self, config: CharLMConfig):
        super().__init__()
        hidden = int(config.dim * config.mlp_ratio)
        self.wv = nn.Linear(config.dim, 2 * hidden)
        self.out = nn.Linear(hidden, config.dim)

    def forward(self, x: Tensor, rate: Tensor | float) -> Tensor:
        """x [b, t, d]; dropout at this rate when training."""
        w, v = self.wv(x).chunk(2, -1)
        hidden = w * F.silu(v)
        return self.out(dropout(hidden, rate) if self.training else hidden)


class Block(GradientCheckpointingLayer):
    """Pre-norm attention and feed-forward."""

    def __init__(self, config: CharLMConfig, layer: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, EPS)
        self.attn = Attention(config, layer)
        self.norm2 = nn.LayerNorm(config.dim, EPS)
        self.mlp = Mlp(config)

    def forward(
        self, x: Tensor, angle: Tensor, mask: Tensor | None, rate: Tensor | float, past_key_values
    ) -> Tensor:
        """x [b, t, d] → [b, t, d]."""
        x = x + self.attn(self.norm1(x), angle, mask, past_key_values)
        return x + self.mlp(self.norm2(x), rate)


class CharLMForCausalLM(PreTrainedModel, GenerationMixin):
    """charlm with its head; `generate` works with and without the cache."""

    config_class = CharLMConfig
    _supports_sdpa = True
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a mean over the batch, whatever a trainer counts
    steps: Tensor

    def __init__(self, config: CharLMConfig):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab, config.dim)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.layers))
        self.norm = nn.LayerNorm(config.dim, EPS)
        self.head = nn.Linear(config.dim, config.vocab)
        # Training passes so far, by which the dropout rate may decay. Not saved. A tensor, because
        # torch.compile takes a Python number for a constant and would compile every step anew.
        self.register_buffer("steps", torch.zeros((), dtype=torch.long), persistent=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """As transformers does; `from_pretrained` leaves unsaved buffers without a value."""
        super()._init_weights(module)
        if module is self:
            nn.init.zeros_(self.steps)

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding."""
        return self.embed

    def get_output_embeddings(self) -> nn.Linear:
        """The head, which is not tied to the embedding."""
        return self.head

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
        """Logits of the character after each token.

        Args:
            input_ids: int64 [b, t].
            attention_mask: [b, s], 1 for real tokens; the padding stands on the left. s counts
                the tokens in the cache too.
            position_ids: [b, t]; by default counted from the first real token.
            past_key_values: a transformers cache of what came before.
            inputs_embeds: [b, t, d] in place of `input_ids`.
            labels: [b, t], usually `input_ids`; shifted here; −100 is left out of the mean.
            use_cache: whether to return a cache.
            logits_to_keep: only this many last positions get logits; 0 means all.
            return_dict: whether the output has names or is a tuple.
            kwargs: of what other models take, only None and False, which ask for nothing.

        Raises:
            ValueError: both or neither of `input_ids` and `inputs_embeds` are given.
            TypeError: an unknown argument.
        """
        refuse_unknown(kwargs)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        mask, positions = self.visible(x, attention_mask, past)
        angle = self.angles(positions if position_ids is None else position_ids)
        if self.training and self.config.dropout_end is not None:
            self.steps.add_(1)
        rate = self.dropout_rate()
        for block in self.blocks:
            x = block(x, angle, mask, rate, past_key_values=past_key_values)
        logits = self.head(self.norm(x[:, -logits_to_keep:])).float()
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        out = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)
        return out.to_tuple() if return_dict is False else out

    def visible(self, x: Tensor, real: Tensor | None, past: int) -> tuple[Tensor | None, Tensor]:
        """Which keys each query of x [b, t, d] may see ([b, 1, t, s], or None for all earlier),
        and the positions [b or 1, t]."""
        t = x.shape[1]
        slots = torch.arange(past + t, device=x.device)
        if real is None or bool(real.all()):
            earlier = None if past == 0 else (slots <= slots[past:, None])[None, None]
            return earlier, slots[None, past:]
        # A padding query sees itself, so that no softmax is over nothing.
        own = slots == slots[past:, None]
        mask = (slots <= slots[past:, None]) & real.bool()[:, None, None] | own
        positions = (real.long().cumsum(-1) - 1).clamp(min=0)
        return mask, positions[:, past:]

    def angles(self, positions: Tensor) -> Tensor:
        """Rotary angles `position · 10000^(−2j/width)`, float32 [b, t, width/2]."""
        width = self.config.dim // self.config.heads
        exponent = torch.arange(0, width, 2, device=positions.device).float() / width
        return positions[..., None].float() * 10_000.0**-exponent

    def dropout_rate(self) -> Tensor | float:
        """The rate now: a constant number, or (start − end)/(steps/scale + 1) + end."""
        config = self.config
        if config.dropout_end is None:
            return config.dropout
        decay = (self.steps - 1).clamp(min=0) / config.dropout_scale + 1
        return (config.dropout - config.dropout_end) / decay + config.dropout_end
