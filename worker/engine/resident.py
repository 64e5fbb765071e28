"""An adapter version that is ready to use, and one that is on its way."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import msgspec

from models.nn.artifact import Artifact
from models.nn.prefix import Prefix
from models.nn.terms import Terms
from models.wire import AdapterRef, Input
from worker.engine.demonstrations import Demonstrations, takes_too_much
from worker.engine.request import Request
from worker.engine.sequence import Footing


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
    """To be dropped as soon as no request holds it or waits for it."""


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
