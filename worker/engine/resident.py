"""An adapter version, ready to use, and how its files become one.

Shapes: p rows of a prefix, K key and value heads, h head dimension, n tokens, d hidden.
"""

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import msgspec
import torch
from torch import Tensor

from core.errors import Corrupt, InvalidRequest
from models.adapter_files import PROVENANCE
from models.nn.artifact import Artifact, Files, read_artifact, read_provenance
from models.nn.attention import PackedCausal, Span
from models.nn.backbone import Backbone
from models.nn.base import Base
from models.nn.chat import Renderer
from models.nn.executors import NOBODY
from models.nn.head import pool
from models.nn.prefix import Prefix, compile_in_pieces
from models.nn.tensor_file import cast_adjacent, largest
from models.nn.terms import Pooling, Terms
from models.wire import AdapterRef, Input
from worker.engine.demonstrations import Demonstrations, takes_too_much
from worker.engine.request import Request
from worker.engine.sequence import Footing

LARGEST = 1e12
"""No number of an adapter may be larger: its products must stay finite under a weight of zero."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What an adapter must have been made for."""

    base_digest: str
    renderer_digest: str


class Form(msgspec.Struct, frozen=True):
    """How a bare text is put to an adapter, or to the base: as in its training."""

    format: Literal["chat", "completion", "text"]
    system: str | None = None
    lead: str = ""
    """White space between a bare prompt and its completion."""
    overflows: int | None = None
    """The engine's context, where the words above leave no room in it."""

    def wrap(self, text: str) -> Input:
        """Return a text as a request; `InvalidRequest` where no text would fit."""
        if self.overflows is not None:
            raise takes_too_much(self.overflows)
        if self.format != "chat":
            return Input(text=text)
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return Input(messages=[*system, {"role": "user", "content": text}])


@dataclass(slots=True)
class Resident:
    """One version that is ready to use."""

    kind: str
    terms: Terms
    footing: Footing
    form: Form
    class_labels: tuple[str, ...] | None
    prefix: Prefix | None
    """Keys and values of what stands before every sequence, and of tokens that most begin with."""
    demonstrations: Demonstrations | None
    bytes: int
    holders: set[Request] = field(default_factory=set)
    """Requests that began with it and have not ended."""
    awaited: bool = True
    """Whether the request that it was fetched for has not begun yet."""
    doomed: bool = False
    """To be dropped as soon as no request holds it."""


class LaidOut(NamedTuple):
    """What was made of an adapter's terms for the C++ step, if there is one."""

    bytes: int = 0
    eager: bool = False
    """Whether that step is there and does not compute what the adapter does."""


NOT_LAID_OUT = LaidOut()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A version that was read and checked, all but what a forward of the base has to say."""

    adapter: AdapterRef
    artifact: Artifact
    terms: Terms
    form: Form
    laid_out: LaidOut = NOT_LAID_OUT

    @property
    def acts(self) -> bool:
        """Whether rows of it are computed otherwise than the base's, in steps of many."""
        terms = self.terms
        return any((terms.linears, terms.hiddens, terms.norms, terms.attentions))


@dataclass(frozen=True, slots=True)
class Loader:
    """Reads versions for one base."""

    backbone: Backbone
    renderer: Renderer
    identity: Identity
    context: int
    base: Base
    """Apart from the backbone's, so that a version is prepared beside a step."""

    @property
    def form(self) -> Form:
        """How a bare text is put to the base."""
        return Form("chat" if self.renderer.tokenizer.chat_template else "completion")

    @torch.inference_mode()
    def prepare(self, adapter: AdapterRef, files: Files) -> Prepared:
        """Read and check a version and make its terms; no forward, so any thread may.

        `Corrupt` for numbers that could reach other rows; `InvalidRequest` for what was made for
        something else.
        """
        self._check_identity(adapter, read_provenance(files))
        artifact = read_artifact(files, shape=self.backbone.shape)
        casts = cast_adjacent(list(artifact.tensors.values()), self.base.dtype)
        terms = Terms.of(artifact.method, artifact.tensors, self.base, casts=casts)
        stored = (*artifact.tensors.values(), *casts.values())
        _require_bounded(adapter, _largest(terms, stored=stored, bound=artifact.largest))
        return Prepared(adapter, artifact, terms, self._read_form(artifact))

    def _read_form(self, artifact: Artifact) -> Form:
        """Return the form that an artifact names; `Corrupt` if it is none: anybody may bring one.

        Words of it that leave a bare text no room are found out here, and not with each text.
        """
        prompt = artifact.provenance.get("prompt")
        if prompt is None:
            return self.form
        try:
            form = msgspec.convert(prompt, Form)
        except msgspec.ValidationError as error:
            raise Corrupt(f"{PROVENANCE} has a `prompt` that is none: {error}.") from error
        fills = self._fills_context((form.system or "") + form.lead)
        return msgspec.structs.replace(form, overflows=self.context if fills else None)

    def _fills_context(self, text: str) -> bool:
        """Say whether a text has as many tokens as there are positions, reading no more of it."""
        end = self.context
        while len(self.renderer.encode(text[:end])) < self.context:
            if end >= len(text):
                return False
            end *= 2
        return True

    @torch.inference_mode()
    def finish(self, prepared: Prepared) -> Generator[None, None, Resident]:
        """Compute what stands before every sequence, if anything does; in the torch thread.

        It yields where other rows may have a step. `Corrupt` for numbers that could reach them.
        """
        artifact, terms, form = prepared.artifact, prepared.terms, prepared.form
        adapter = prepared.adapter
        demonstrations = Demonstrations.of(
            artifact.method,
            artifact.tensors,
            renderer=self.renderer,
            features=self.features,
            context=self.context,
        )
        shared = demonstrations.shared(form.wrap) if demonstrations else []
        rows = terms.prefix_rows
        if rows > self.context - 2:  # a token to read and one to write
            raise takes_too_much(self.context, taken=str(rows))
        if rows + len(shared) >= self.context:
            raise takes_too_much(self.context)
        backbone = self.backbone.using(terms.weights)
        prefix = yield from compile_in_pieces(backbone, terms, token_ids=shared)
        if prefix is not None:
            _require_bounded(adapter, largest((*prefix.keys, *prefix.values)))
        terms = replace(terms, prompt=None, keys_values={})
        is_open = any(term.function is not None for term in terms.linears.values())
        kept = artifact.tensors.values() if demonstrations or is_open else ()
        alone = bool(terms.weights) or not artifact.method.shares_batch
        return Resident(
            kind=artifact.method.kind,
            terms=terms,
            footing=Footing(
                owner=adapter.digest if prepared.acts else None,
                group=adapter.digest if alone else None,
                rows=rows,
                eager=prepared.laid_out.eager,
            ),
            form=form,
            class_labels=artifact.method.class_labels,
            prefix=prefix,
            demonstrations=demonstrations,
            bytes=terms.bytes
            + prepared.laid_out.bytes
            + (prefix.bytes if prefix else 0)
            + sum(tensor.nbytes for tensor in kept),
        )

    def features(self, ids: list[int], pooling: Pooling) -> Tensor:
        """Return (d,) float32: the base's pooled final hidden states of n tokens."""
        ids_n = torch.tensor(ids[: self.context], device=self.backbone.device)
        hidden_nd = self.backbone.hidden(
            ids_n,
            positions=torch.arange(len(ids_n), device=self.backbone.device),
            attention=PackedCausal([Span(0, len(ids_n))]),
            executor=NOBODY,
        )
        return pool(hidden_nd, [len(ids_n)], pooling=pooling)[0].cpu()

    def _check_identity(self, adapter: AdapterRef, provenance: Mapping[str, Any]) -> None:
        """Refuse what says that it was made for something else; bare PEFT files say nothing."""
        for key, expected, what in (
            ("base_digest", self.identity.base_digest, "base model"),
            ("renderer_digest", self.identity.renderer_digest, "tokenizer or chat template"),
        ):
            if provenance.get(key, expected) != expected:
                raise InvalidRequest(
                    f"The adapter {adapter.name!r} was trained on another {what} than this "
                    "engine serves.",
                    code="adapter_base_mismatch",
                    param="model",
                )


def _require_bounded(adapter: AdapterRef, magnitude: float) -> None:
    if not magnitude <= LARGEST:  # so that NaN is refused too
        raise Corrupt(
            f"The adapter {adapter.name!r} holds numbers that are not finite or too large.",
            code="adapter_unusable",
        )


def _largest(terms: Terms, *, stored: Iterable[Tensor] = (), bound: float = 0.0) -> float:
    """Return the largest magnitude of any tensor or scale; NaN if there is one.

    Of tensors that are `stored` ones, in whatever type, it is known not to be above `bound`.
    """
    known = {id(tensor) for tensor in stored}
    own = [tensor for tensor in terms.tensors() if id(tensor) not in known]
    scales = [term.scale for term in terms.linears.values()]
    scales += [term.scale for term in terms.hiddens.values()]
    found = [largest(own), bound, *scales]
    return largest([torch.tensor(found, dtype=torch.float64)])
