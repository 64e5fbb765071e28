"""How an adapter's files become a version that is ready to use.

Shapes: n tokens, d hidden.
"""

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

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
from models.nn.spare import without_spare
from models.nn.tensor_file import cast_adjacent, largest
from models.nn.terms import Pooling, Terms
from models.wire import AdapterRef
from worker.engine.demonstrations import Demonstrations, takes_too_much
from worker.engine.resident import Form, Prepared, Resident
from worker.engine.sequence import Footing

LARGEST = 1e12
"""No number of an adapter may be larger: its products must stay finite under a weight of zero."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What an adapter must have been made for."""

    base_digest: str
    renderer_digest: str


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
        words = self.renderer.encode((form.system or "") + form.lead, most=self.context)
        fills = len(words) >= self.context
        return msgspec.structs.replace(form, overflows=self.context if fills else None)

    @torch.inference_mode()
    def finish(self, prepared: Prepared) -> Generator[None, None, Resident]:
        """Compute what stands before every sequence, if anything does; in the torch thread.

        It yields where other rows may have a step. `Corrupt` for numbers that could reach them.
        """
        artifact, terms = prepared.artifact, prepared.terms
        demonstrations = Demonstrations.of(
            artifact.method,
            artifact.tensors,
            renderer=self.renderer,
            features=self.features,
            context=self.context,
        )
        shared = demonstrations.shared(prepared.form.wrap) if demonstrations else []
        rows = terms.prefix_rows
        if rows > self.context - 2:  # a token to read and one to write
            raise takes_too_much(self.context, taken=str(rows))
        if rows + len(shared) >= self.context:
            raise takes_too_much(self.context)
        backbone = self.backbone.using(terms.weights)
        prefix = yield from compile_in_pieces(backbone, terms, token_ids=shared)
        if prefix is not None:
            _require_bounded(prepared.adapter, largest((*prefix.keys, *prefix.values)))
        return _settle(prepared, prefix, demonstrations)

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


def _settle(
    prepared: Prepared, prefix: Prefix | None, demonstrations: Demonstrations | None
) -> Resident:
    """Return what is kept of a version, and how its rows stand in a step."""
    artifact, digest = prepared.artifact, prepared.adapter.digest
    is_open = any(term.function is not None for term in prepared.terms.linears.values())
    kept = artifact.tensors.values() if demonstrations or is_open else ()
    terms = replace(prepared.terms, prompt=None, keys_values={})
    if terms.norms or terms.head is not None:  # these stay as the file has them
        terms = without_spare(terms, kept=kept)
    alone = bool(terms.weights) or not artifact.method.shares_batch
    return Resident(
        kind=artifact.method.kind,
        terms=terms,
        footing=Footing(
            owner=digest if prepared.acts else None,
            group=digest if alone else None,
            rows=prepared.terms.prefix_rows,
            eager=prepared.laid_out.eager,
        ),
        form=prepared.form,
        class_labels=artifact.method.class_labels,
        prefix=prefix,
        demonstrations=demonstrations,
        bytes=terms.bytes
        + prepared.laid_out.bytes
        + (prefix.bytes if prefix else 0)
        + sum(tensor.nbytes for tensor in kept),
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
