"""The flat forward: a plain Llama's trunk over the surgery's own weights, with joined products.

Query, key and value are one product, gate and up another; residual sums and norms are one op. It
serves a network only if it equals the surgery on a probe (`admit`), so what it does not know (a
window, a cap, a multiplier) is found before it can do harm. Executors are asked at the same places
and in the same order.
Shapes: T rows of the stream, N of them read, d hidden, H query heads, K key heads, G = H + 2 K,
h head dimension, f what heads give together.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.nn.again import again, rotate, swiglu
from models.nn.attention import Attention, PackedCausal
from models.nn.executors import NOBODY, Executor
from models.nn.joint import Joint
from models.nn.kernels import Layer, OpTable, ops
from models.nn.lower_layers import LowerLayers
from models.nn.quantized import is_packed
from models.nn.shape import BODY_PREFIX, Shape, path_of

FLAT_FAMILIES = frozenset({"llama", "mistral", "qwen2"})
_PROBE = (23, 1, 40)
_PROBE_ROWS = sum(_PROBE)
_BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 0.04, torch.float16: 0.01}
"""Largest norm of the difference over the norm of the probe's states: roundings, not faults."""

Look = Callable[[str], Tensor | None]
"""From the name of a parameter in the network to what stands there, if anything does."""


@dataclass(frozen=True, eq=False)
class _Norm:
    place: str
    weight_d: Tensor
    gain_d: Tensor
    epsilon: float

    def gain(self, executor: Executor, *, rows: int) -> Tensor:
        """Return (d,) or (T, d): what executors give, or else the parameter itself."""
        given = executor.gain(self.place, self.gain_d, rows=rows)
        return self.weight_d if given is self.gain_d else given


@dataclass(frozen=True, eq=False)
class _Block:
    attention_norm: _Norm
    heads: Joint
    output: Joint
    feedforward_norm: _Norm
    gate_up: Joint
    down: Joint

    @property
    def joints(self) -> tuple[Joint, Joint, Joint, Joint]:
        """Its products, in their order."""
        return self.heads, self.output, self.gate_up, self.down


class FlatTrunk:
    """The layers between the embedding and the final hidden states."""

    def __init__(self, network: Any, shape: Shape, weights: Mapping[str, Tensor]) -> None:
        """Read a network after surgery; `weights` stand for parameters of theirs, by name."""
        self._shape = shape
        self._rotary: Any = network.model.rotary_emb

        def look(name: str) -> Tensor | None:
            if name in weights:
                return weights[name]
            holder = network.get_submodule(name.rpartition(".")[0])
            parameter: Tensor | None = getattr(holder, name.rpartition(".")[2])
            return parameter

        embedding = look(f"{BODY_PREFIX}embed_tokens.weight")
        assert embedding is not None  # noqa: S101 - every network has one
        self._embedding_vd = embedding
        self._blocks = [_block(network, look, layer) for layer in range(shape.layers)]
        self._norm = _norm(network, look, "norm")
        self._lower = LowerLayers(
            shape,
            layers=[_layer(*pair) for pair in pairwise(self._blocks)],
            joints=[joint for block in self._blocks[:-1] for joint in block.joints],
        )

    def hidden(
        self,
        stream: Tensor,
        *,
        positions: Tensor,
        attention: Attention,
        executor: Executor,
        rows_n: Tensor | None = None,
    ) -> Tensor:
        """Return the final-normed hidden states (T, d) or (N, d); see `Backbone.hidden`.

        In the last layer rows that nobody reads end with their keys and values; those that are read
        several times are computed once.
        """
        x_td = stream if stream.is_floating_point() else F.embedding(stream, self._embedding_vd)
        table, rows = ops(x_td.device), len(x_td)
        cos_1th, sin_1th = self._rotary(x_td, positions[None])
        angles = (cos_1th[0], sin_1th[0])
        norm = self._blocks[0].attention_norm
        gain = norm.gain(executor, rows=rows)
        normed_td = table.rms_norm(x_td, gain=gain, epsilon=norm.epsilon)
        done = 0
        lower = self._lower.compute(
            x_td, normed_td, angles=angles, attention=attention, executor=executor
        )
        if lower is not None:
            done, (x_td, normed_td) = len(self._lower), lower
        for layer, block in enumerate(self._blocks[done:], done):
            last = layer + 1 == len(self._blocks)
            with _norm_again(table, x_td, normed_td, norm, gain):
                heads_to = executor.project(block.heads, normed_td)
            seen_tf = self._attend(layer, heads_to, angles, attention, executor)
            del heads_to
            if last and rows_n is not None:
                read_n, places_n = torch.unique(rows_n, return_inverse=True)
                x_td, normed_td, seen_tf = (
                    each.index_select(0, read_n) for each in (x_td, normed_td, seen_tf)
                )
                executor = executor.at(read_n)
            y_td = executor.project(block.output, seen_tf)
            y_td = executor.hidden(f"layers.{layer}.self_attn", normed_td, y_td)
            norm = block.feedforward_norm
            gain = norm.gain(executor, rows=len(x_td))
            normed_td, x_td = table.add_rms_norm(x_td, y_td, gain=gain, epsilon=norm.epsilon)
            with _norm_again(table, x_td, normed_td, norm, gain):
                gate_up_tm = executor.project(block.gate_up, normed_td)
            inner_tm, compute = swiglu(table, gate_up_tm)
            del gate_up_tm
            with again(inner_tm, compute):
                y_td = executor.project(block.down, inner_tm)
            y_td = executor.hidden(f"layers.{layer}.mlp", normed_td, y_td)
            norm = self._norm if last else self._blocks[layer + 1].attention_norm
            gain = norm.gain(executor, rows=len(x_td))
            normed_td, x_td = table.add_rms_norm(x_td, y_td, gain=gain, epsilon=norm.epsilon)
        return normed_td if rows_n is None else normed_td[places_n]

    def joints(self) -> Iterator[Joint]:
        """Go through every product of the trunk."""
        for block in self._blocks:
            yield from block.joints

    def share(self, network: nn.Module) -> None:
        """Let the network's own leaves be views of the joined weights."""
        for block in self._blocks:
            for joint in (block.heads, block.gate_up):
                for one in joint.apart:
                    leaf: Any = network.get_submodule(path_of(one.places[0]))
                    leaf.weight.data = one.weight.weight_oi
                    if one.weight.bias_o is not None:
                        leaf.bias.data = one.weight.bias_o

    def _attend(
        self,
        layer: int,
        heads_to: Tensor,
        angles: tuple[Tensor, Tensor],
        attention: Attention,
        executor: Executor,
    ) -> Tensor:
        """Return (T, f): what a block's attention gives from its heads, before its own product."""
        shape = self._shape
        heads_tgh = heads_to.view(len(heads_to), -1, shape.head_dim)
        heads_tgh, read = rotate(
            ops(heads_to.device),
            heads_tgh,
            cos_th=angles[0],
            sin_th=angles[1],
            rotated=shape.heads + shape.kv_heads,
        )
        scale = shape.head_dim**-0.5
        with again(heads_tgh, read):
            output_thh = attention.attend_joined(
                layer, heads_tgh, kv_heads=shape.kv_heads, scale=scale
            )
        query_hth = heads_tgh[:, : shape.heads].transpose(0, 1)
        return executor.attention(layer, query_hth, output_thh, scale=scale).flatten(1)


def _norm_again(
    table: OpTable, x_td: Tensor, normed_td: Tensor, norm: _Norm, gain: Tensor
) -> AbstractContextManager[Any]:
    """Have a product keep no norm of x in float32, where it takes twice what it takes elsewhere."""
    if x_td.dtype is not torch.float32:
        return nullcontext()
    compute = partial(table.rms_norm, x_td.detach(), gain=gain.detach(), epsilon=norm.epsilon)
    return again(normed_td, compute)


def _block(network: nn.Module, look: Look, layer: int) -> _Block:
    name = f"layers.{layer}"

    def join(*parts: str) -> Joint:
        places = tuple(f"{name}.{part}_proj" for part in parts)
        weights = [look(f"{path_of(place)}.weight") for place in places]
        biases = [look(f"{path_of(place)}.bias") for place in places]
        return Joint.of(places, [weight for weight in weights if weight is not None], biases)

    return _Block(
        _norm(network, look, f"{name}.input_layernorm"),
        join("self_attn.q", "self_attn.k", "self_attn.v"),
        join("self_attn.o"),
        _norm(network, look, f"{name}.post_attention_layernorm"),
        join("mlp.gate", "mlp.up"),
        join("mlp.down"),
    )


def _layer(block: _Block, following: _Block) -> Layer:
    second, behind = block.feedforward_norm, following.attention_norm
    return Layer(
        heads=block.heads.weight,
        output=block.output.weight,
        gate_up=block.gate_up.weight,
        down=block.down.weight,
        gains_d=(second.weight_d, behind.weight_d),
        epsilons=(second.epsilon, behind.epsilon),
    )


def _norm(network: nn.Module, look: Look, place: str) -> _Norm:
    leaf: Any = network.get_submodule(path_of(place))
    weight_d = look(f"{path_of(place)}.weight")
    return _Norm(place, leaf.weight if weight_d is None else weight_d, leaf.gain_d, leaf.eps)


class _Plain(PackedCausal):
    """The probe's attention, which remembers whether a layer asked for more than is plain."""

    asked = False

    def attend(
        self,
        layer: int,
        query_hth: Tensor,
        key_kth: Tensor,
        value_kth: Tensor,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """See `Attention.attend`."""
        self.asked |= window is not None or softcap is not None
        return super().attend(
            layer, query_hth, key_kth, value_kth, scale=scale, window=window, softcap=softcap
        )


def admit(network: Any, shape: Shape, *, surgery: Callable[..., Tensor]) -> FlatTrunk | None:
    """Return the flat forward of a network after surgery, if it is sure to be the same function.

    The leaves of joined places become views of the joined weights, so that there is one copy.
    """
    packed = any(is_packed(parameter) for parameter in network.parameters())
    if packed or network.config.model_type not in FLAT_FAMILIES:
        return None
    flat = FlatTrunk(network, shape, {})
    if not _equals(flat, network, surgery):
        return None
    flat.share(network)
    return flat


@torch.no_grad()
def _equals(flat: FlatTrunk, network: Any, surgery: Callable[..., Tensor]) -> bool:
    """Compare both on a few random sequences, one of them far into the context."""
    device, config = network.device, network.config
    generator = torch.Generator().manual_seed(0)
    ids_t = torch.randint(config.vocab_size, (_PROBE_ROWS,), generator=generator).to(device)
    offset = max(config.max_position_embeddings - _PROBE[-1], 0) // 2
    firsts = (0, 0, offset)
    positions_t = torch.cat(
        [torch.arange(first, first + n) for first, n in zip(firsts, _PROBE, strict=True)]
    ).to(device)
    spans = list(pairwise(accumulate(_PROBE, initial=0)))
    attention = _Plain(spans)
    given: dict[str, Any] = {"positions": positions_t, "executor": NOBODY}
    expected_td = surgery(ids_t, attention=attention, **given).float()
    if attention.asked:
        return False
    found_td = flat.hidden(ids_t, attention=PackedCausal(spans), **given).float()
    difference = (found_td - expected_td).norm() / expected_td.norm()
    return bool(difference < _BOUNDS.get(network.dtype, 0.0))
