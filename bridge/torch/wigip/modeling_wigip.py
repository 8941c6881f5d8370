"""wigip in PyTorch, for transformers: a vision Transformer over a grid of characters (seed 000).

This file stands alone and travels with every model directory, so that
`AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True)` opens it; `AutoModel` gives the
same without `generate`.

Notable: the text fills the grid line by line; attention has no mask; the head reads patch 0,
which predicts the one character after the whole grid. With `objective = "dense"` the text fills
the grid patch by patch, and every character is predicted: a patch is the sum of one term for each
of its characters, so it is read in every state of being filled; it sees the full patches before
it and itself. GELU is the tanh approximation; LayerNorm eps is 1e-6.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

EPS = 1e-6


def refuse_unknown(kwargs: dict[str, Any]) -> None:
    """Raises TypeError for an argument that is not used; libraries pass None or False for many."""
    for name, value in kwargs.items():
        if value is not None and value is not False:
            raise TypeError(f"forward() got an unexpected keyword argument {name!r}")


class WigipConfig(PretrainedConfig):
    """Sizes of one wigip; transformers' own names of them are aliases."""

    model_type = "wigip"
    attribute_map: ClassVar = {
        "vocab_size": "vocab",
        "hidden_size": "dim",
        "num_hidden_layers": "layers",
        "num_attention_heads": "heads",
    }

    def __init__(
        self,
        vocab: int = 256,
        side: int = 180,
        patch: int = 4,
        dim: int = 2496,
        layers: int = 24,
        heads: int = 32,
        objective: str = "next_char",
        **kwargs,
    ):
        self.vocab = vocab
        self.side = side
        self.patch = patch
        self.dim = dim
        self.layers = layers
        self.heads = heads
        self.objective = objective
        super().__init__(**{"tie_word_embeddings": False, **kwargs})


@dataclass
class WigipOutput(ModelOutput):
    """The mean loss, where labels were given, and float32 logits."""

    loss: Tensor | None = None
    logits: Tensor | None = None


class Attention(nn.Module):
    """Multi-head attention; all four projections have biases."""

    def __init__(self, config: WigipConfig):
        super().__init__()
        self.heads = config.heads
        self.q = nn.Linear(config.dim, config.dim)
        self.k = nn.Linear(config.dim, config.dim)
        self.v = nn.Linear(config.dim, config.dim)
        self.proj = nn.Linear(config.dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        """x [b, n, d], whole patches; or [b, n, p, d], n patches in p states each."""
        q, k, v = (part(x).unflatten(-1, (self.heads, -1)) for part in (self.q, self.k, self.v))
        if x.ndim == 4:
            return self.proj(self.of_states(q, k, v).flatten(-2))
        out = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in (q, k, v)))
        return self.proj(out.transpose(1, 2).flatten(-2))

    def of_states(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[b, n, p, h, k]: each state sees itself and the full patches before its own."""
        scale = q.shape[-1] ** -0.5
        keys, values = k[:, :, -1], v[:, :, -1]
        order = torch.arange(q.shape[1], device=q.device)
        hidden = (order[:, None] <= order)[:, None]
        others = torch.einsum("bnphk,bmhk->bhnpm", q, keys).float() * scale
        own = (q.float() * k.float()).sum(-1).permute(0, 3, 1, 2)[..., None] * scale
        weights = torch.cat([others.masked_fill(hidden, float("-inf")), own], -1).softmax(-1)
        weights = weights.type_as(v)
        out = torch.einsum("bhnpm,bmhk->bnphk", weights[..., :-1], values)
        return out + weights[..., -1].permute(0, 2, 3, 1)[..., None] * v


class Mlp(nn.Module):
    """Two layers with a GELU between them."""

    def __init__(self, config: WigipConfig):
        super().__init__()
        self.up = nn.Linear(config.dim, 4 * config.dim)
        self.out = nn.Linear(4 * config.dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        """[… d] → [… d]."""
        return self.out(F.gelu(self.up(x), approximate="tanh"))


class Block(GradientCheckpointingLayer):
    """Pre-norm attention and feed-forward."""

    def __init__(self, config: WigipConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, EPS)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.dim, EPS)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor) -> Tensor:
        """[… d] → [… d]."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class WigipModel(PreTrainedModel):
    """wigip with its head."""

    config_class = WigipConfig
    main_input_name = "input_ids"
    _supports_sdpa = True
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a mean over the batch, whatever a trainer counts

    def __init__(self, config: WigipConfig):
        super().__init__(config)
        side, area = config.patch, config.patch**2
        self.embed = nn.Embedding(config.vocab, area)
        self.patch = nn.Conv2d(area, config.dim, side, stride=side)
        self.pos = nn.Embedding((config.side // side) ** 2, config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.dim, EPS)
        self.head = nn.Linear(config.dim, config.vocab)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding."""
        return self.embed

    def get_output_embeddings(self) -> nn.Linear:
        """The head, which is not tied to the embedding."""
        return self.head

    def forward(
        self, input_ids: Tensor, labels: Tensor | None = None, return_dict: bool = True, **kwargs
    ) -> WigipOutput | tuple:
        """Logits of the next character, float32.

        Args:
            input_ids: int64 [b, side²]; with the dense objective also fewer, [b, t].
            labels: the character after each grid, int64 [b]. With the dense objective [b, t],
                usually `input_ids`; shifted here; −100 is left out of the mean.
            return_dict: whether the output has names or is a tuple.
            kwargs: of what other models take, only None and False, which ask for nothing.

        Returns:
            logits [b, v], with the dense objective [b, t, v]; and the loss where there are labels.

        Raises:
            ValueError: another number of characters than the grid takes.
            TypeError: an unknown argument.
        """
        refuse_unknown(kwargs)
        t, most = input_ids.shape[1], self.config.side**2
        dense = self.config.objective == "dense"
        if t > most or (t < most and not dense):
            raise ValueError(f"{t} characters, where the grid takes {most}")
        logits = self.logits(input_ids)
        loss = None
        if labels is not None and dense:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        elif labels is not None:
            loss = F.cross_entropy(logits, labels.flatten())
        out = WigipOutput(loss=loss, logits=logits)
        return out if return_dict else out.to_tuple()

    def logits(self, ids: Tensor) -> Tensor:
        """ids [b, side²] → float32 [b, v]; with the dense objective [b, t] → [b, t, v]."""
        dense = self.config.objective == "dense"
        x = self.states(ids) if dense else self.patches(ids)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x.flatten(1, 2)[:, : ids.shape[1]] if dense else x[:, 0])
        return self.head(x).float()

    def patches(self, ids: Tensor) -> Tensor:
        """ids [b, side²] → [b, n, d], one vector for each patch of the grid."""
        grid = self.embed(ids).unflatten(1, (self.config.side, -1))
        return self.patch(grid.permute(0, 3, 1, 2)).flatten(2).mT + self.pos.weight

    def states(self, ids: Tensor) -> Tensor:
        """ids [b, t] → [b, n, p, d], a vector for each patch with its first 1 to p characters."""
        area = self.config.patch**2
        ids = F.pad(ids, (0, -ids.shape[1] % area)).unflatten(1, (-1, area))
        terms = torch.einsum("bnpe,dep->bnpd", self.embed(ids), self.patch.weight.flatten(2))
        assert self.patch.bias is not None
        return terms.cumsum(2) + self.patch.bias + self.pos.weight[: ids.shape[1], None]


class WigipForCausalLM(WigipModel, GenerationMixin):
    """wigip that goes on with a text of any length: `generate`, without a cache."""

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        return_dict: bool = True,
        attention_mask: Tensor | None = None,
        logits_to_keep: int = 0,
        **kwargs,
    ) -> WigipOutput | tuple:
        """Logits of the character after a text; with labels, as `WigipModel`.

        Args:
            input_ids: int64 [b, t]. The grid is filled with the end of the text; where it is
                shorter, id 0 stands before it. With the dense objective the grid is begun anew
                with the last half of its text whenever it is full.
            labels: those of `WigipModel`.
            return_dict: whether the output has names or is a tuple.
            attention_mask: [b, t], 0 for padding, which stands on the left.
            logits_to_keep: with the dense objective: 1 gives logits of the last character only.
            kwargs: of what other models take, only None and False, which ask for nothing.

        Returns:
            logits [b, 1, v]; with the dense objective [b, t, v] where t characters fit the grid.

        Raises:
            TypeError: an unknown argument.
        """
        refuse_unknown(kwargs)
        if labels is not None:
            return super().forward(input_ids, labels, return_dict)
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        size, t = self.config.side**2, input_ids.shape[1]
        if self.config.objective == "next_char":
            ids = F.pad(input_ids * real, (max(size - t, 0), 0))[:, -size:]
            logits = self.logits(ids)[:, None]
        elif t < size:
            logits = self.shifted(input_ids, real)[:, -logits_to_keep:]
        else:
            half = size // 2
            keep = half + (t - size) % (size - half)
            logits = self.shifted(input_ids[:, -keep:], real[:, -keep:])[:, -1:]
        out = WigipOutput(logits=logits)
        return out if return_dict else out.to_tuple()

    def shifted(self, ids: Tensor, real: Tensor) -> Tensor:
        """Dense logits [b, t, v] of texts that begin at the first patch, wherever they begin in
        ids [b, t]: padding goes to their right, where nothing looks at it."""
        t = ids.shape[1]
        missing = (t - real.sum(1, keepdim=True)).long()
        places = torch.arange(t, device=ids.device)
        logits = self.logits(ids.gather(1, (places + missing).clamp(max=t - 1)))
        back = (places - missing).clamp(min=0)[..., None]
        return logits.gather(1, back.expand(-1, -1, logits.shape[-1]))

    def prepare_inputs_for_generation(self, input_ids: Tensor, *args, **kwargs) -> dict:
        """All of the text at every step: there is no cache."""
        mask = kwargs.get("attention_mask")
        return {"input_ids": input_ids, "attention_mask": mask, "logits_to_keep": 1}
