"""The dimensions of a base model, as plain data that needs no torch to read.

A *place* is the Hugging Face module path below `model.` (`layers.3.self_attn.q_proj`, `norm`), or
`lm_head`; so the names of PEFT files follow from places without a table.
"""

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from models.nn.rotation import context_of

if TYPE_CHECKING:
    from torch import nn

HEAD = "lm_head"
BODY_PREFIX = "model."
_LINEARS = frozenset({"Linear", "Linear4bit", "Linear8bitLt"})


class Shape(BaseModel, frozen=True):
    """What a method must know of a base to lay out its tensors."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    tied: bool
    linears: dict[str, tuple[int, int]]
    """Every linear place with its (out, in)."""
    norms: dict[str, int]
    """Every norm over the hidden size; norms of single heads (Qwen3) are not places."""
    parts: dict[str, dict[str, tuple[int, int]]] = {}
    """Output slices of fused places by the name the part has where it is not fused (Phi-3)."""
    parameters: dict[str, tuple[int, ...]] = {}
    """Every parameter of the network by its name there; one that is tied to another is left out.

    So is a weight that is held in 4 or 8 bits: nothing can stand for it.
    """

    @property
    def sublayers(self) -> tuple[str, ...]:
        """The places of attention and feed-forward blocks, whose outputs join the residual."""
        return tuple(
            f"layers.{layer}.{name}"
            for layer in range(self.layers)
            for name in ("self_attn", "mlp")
        )

    @classmethod
    def of(cls, network: "nn.Module") -> "Shape":
        """Read the dimensions off a Hugging Face causal language network, before surgery."""
        config: Any = network.config
        modules = {
            place_of(path): module
            for path, module in network.named_modules()
            if path == HEAD or path.startswith(BODY_PREFIX)
        }
        linears = {
            place: (module.out_features, module.in_features)
            for place, module in modules.items()
            if type(module).__name__ in _LINEARS
        }
        norms = {
            place: config.hidden_size
            for place, module in modules.items()
            if type(module).__name__.endswith("RMSNorm")
            and tuple(module.weight.shape) == (config.hidden_size,)
            and not place.endswith(("q_norm", "k_norm"))
        }
        head_dim = getattr(config, "head_dim", None)
        head_dim = head_dim or config.hidden_size // config.num_attention_heads
        return cls(
            hidden=config.hidden_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=head_dim,
            vocab=linears[HEAD][0],
            context=context_of(config),
            tied=bool(config.tie_word_embeddings),
            linears=linears,
            norms=norms,
            parts=_parts(linears, query=config.num_attention_heads * head_dim),
            parameters={
                name: tuple(value.shape)
                for name, value in network.named_parameters()
                if value.is_floating_point()
            },
        )


def place_of(path: str) -> str:
    """Return the place of a module path of the whole network."""
    return path.removeprefix(BODY_PREFIX)


def path_of(place: str) -> str:
    """Return the module path, in the whole network, of a place."""
    return place if place == HEAD else BODY_PREFIX + place


def _parts(
    linears: dict[str, tuple[int, int]], *, query: int
) -> dict[str, dict[str, tuple[int, int]]]:
    parts = {}
    for place, (out, _) in linears.items():
        if place.endswith(".qkv_proj"):
            key_end = query + (out - query) // 2
            parts[place] = {
                "q_proj": (0, query),
                "k_proj": (query, key_end),
                "v_proj": (key_end, out),
            }
        elif place.endswith(".gate_up_proj"):
            parts[place] = {"gate_proj": (0, out // 2), "up_proj": (out // 2, out)}
    return parts
