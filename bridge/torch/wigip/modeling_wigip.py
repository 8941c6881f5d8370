"""wigip in PyTorch, for transformers: a vision Transformer over a grid of characters (seed 000).

This file stands alone and travels with every model directory, so that
`AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True)` opens it; `AutoModel` gives the
same without `generate`.

Notable: the text fills the grid line by line; attention has no mask; the head reads patch 0,
which predicts the one character after the whole grid. With `objective = "dense"` the text fills
the grid patch by patch, and every character is predicted: a patch is the sum of one term for each
of its characters, so it is read in every state of being filled; it sees the full patches before
it and itself. GELU is the tanh approximation; LayerNorm eps is 1e-6.

With `images` the same trunk reads pictures of side × side pixels, a pixel in place of each
character: `get_image_features`, `get_text_features` of captions, and `predicted`.
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
        images: bool = False,
        **kwargs,
    ):
        self.vocab = vocab
        self.side = side
        self.patch = patch
        self.dim = dim
        self.layers = layers
        self.heads = heads
        self.objective = objective
        self.images = images
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

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:
        """x [b, n, d], whole patches; or [b, n, p, d], n patches in p states each."""
        q, k, v = (part(x).unflatten(-1, (self.heads, -1)) for part in (self.q, self.k, self.v))
        if x.ndim == 4:
            return self.proj(self.of_states(q, k, v).flatten(-2))
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
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

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:
        """[… d] → [… d]."""
        x = x + self.attn(self.norm1(x), causal)
        return x + self.mlp(self.norm2(x))


class Images(nn.Module):
    """The parameters that only pictures and captions need."""

    def __init__(self, config: WigipConfig):
        super().__init__()
        area = config.patch**2
        self.colour = nn.Linear(3, area)
        self.head = nn.Linear(config.dim, 3 * area)
        self.text_pool = nn.Linear(config.dim, config.dim)
        self.image_pool = nn.Linear(config.dim, config.dim)
        self.log_temperature = nn.Parameter(torch.tensor(0.07).log())


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
        if config.images:
            self.images = Images(config)
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
        x = self.through(self.states(ids) if dense else self.patches(ids))
        x = self.norm(x.flatten(1, 2)[:, : ids.shape[1]] if dense else x[:, 0])
        return self.head(x).float()

    def through(self, x: Tensor, causal: bool = False) -> Tensor:
        """x after all blocks; `causal`: patches [b, n, d] see none behind them."""
        for block in self.blocks:
            x = block(x, causal)
        return x

    def patches(self, ids: Tensor) -> Tensor:
        """ids [b, r · side] → [b, n, d], one vector for each patch of r lines of the grid."""
        return self.placed(self.embed(ids).unflatten(1, (-1, self.config.side)))

    def placed(self, grid: Tensor) -> Tensor:
        """[b, y, side, p²] → [b, n, d]: patches with their positions."""
        x = self.patch(grid.permute(0, 3, 1, 2)).flatten(2).mT
        return x + self.pos.weight[: x.shape[1]]

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Unit vectors [b, d] of captions [b, t] of at most side · patch characters.

        Where attention_mask [b, t] is 0, and behind the caption, the page has id 0.
        """
        config = self.config
        self.check_images()
        most = config.side * config.patch
        if input_ids.shape[1] > most:
            raise ValueError(f"{input_ids.shape[1]} characters, where a caption has {most}")
        ids = input_ids if attention_mask is None else input_ids * attention_mask
        ids = F.pad(ids, (0, most - ids.shape[1]))
        x = self.states(ids)[:, :, -1] if config.objective == "dense" else self.patches(ids)
        return self.unit(self.images.text_pool, self.norm(self.through(x)))

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Unit vectors [b, d] of pictures [b, 3, side, side] in [0, 1]."""
        x = self.through(self.placed(self.coloured(pixel_values)))
        return self.unit(self.images.image_pool, self.norm(x))

    def predicted(self, pixel_values: Tensor) -> Tensor:
        """The patches of pictures but the first, each predicted from those before it.

        Args:
            pixel_values: [b, 3, side, side] in [0, 1].

        Returns:
            pixels [b, n − 1, p², 3], normalised: (x − 0.5) / 0.25.
        """
        x = self.through(self.placed(self.coloured(pixel_values)), causal=True)
        return self.images.head(self.norm(x[:, :-1])).float().unflatten(-1, (-1, 3))

    def coloured(self, pixel_values: Tensor) -> Tensor:
        """[b, 3, side, side] in [0, 1] → [b, side, side, p²], where characters have embeddings."""
        self.check_images()
        side = self.config.side
        if pixel_values.shape[1:] != (3, side, side):
            raise ValueError(f"pictures {tuple(pixel_values.shape)}, where 3 × {side} × {side} fit")
        pixels = (pixel_values.permute(0, 2, 3, 1) - 0.5) / 0.25
        return self.images.colour(pixels.type_as(self.images.colour.weight))

    def check_images(self) -> None:
        """Raises ValueError for a model of text alone."""
        if not self.config.images:
            raise ValueError("this wigip reads no images")

    def unit(self, pool: nn.Linear, x: Tensor) -> Tensor:
        """The mean over patches [b, n, d] through a layer, as unit vectors [b, d], float32."""
        return F.normalize(pool(x.float().mean(1).type_as(x)).float(), dim=-1)

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
