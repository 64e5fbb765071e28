"""From what callers post to what the engine's thread computes: read in a thread of its own."""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from msgspec.structs import replace

from core.errors import Unavailable
from models.nn.chat import Renderer
from models.spec import SamplingSpec
from models.wire import ClassifyRequest, EmbedRequest, GenerateRequest, Input
from worker.engine.assembly import Assembly
from worker.engine.generation import Generation
from worker.engine.intake import check_inputs, name_of, read_generation, read_input, token_limit
from worker.engine.reading import Reading

ReadT = TypeVar("ReadT")


class Reception:
    """Reads requests one by one beside the event loop: a long prompt takes a while."""

    def __init__(self, over: Callable[[], Unavailable]) -> None:
        """Take what is raised where nothing is read any more."""
        self.coming = 0
        """Requests that are being read."""
        self._over = over
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="intake")

    def close(self) -> None:
        """Let the thread end."""
        self._thread.shutdown()

    async def generation(
        self, request: GenerateRequest, *, sampling: SamplingSpec, opened: Assembly
    ) -> Generation:
        """Return what is to be written; `InvalidRequest` for what can never be."""
        source = Input(messages=request.messages, text=request.prompt, ids=request.prompt_ids)
        read = partial(
            read_generation,
            source,
            request.prediction,
            renderer=opened.renderer,
            vocab=opened.backbone.shape.vocab,
            context=opened.context,
        )
        prompt, prediction = await self._read(read)
        token_limit(len(prompt), sampling=sampling, context=opened.context)
        return Generation(
            adapter=request.adapter,
            tenant=request.tenant,
            loop=asyncio.get_running_loop(),
            rows=sampling.n,
            source=source,
            prompt=prompt,
            sampling=sampling,
            seed=secrets.randbits(63) if sampling.seed is None else sampling.seed,
            stream=request.stream,
            prediction=prediction,
        )

    async def reading(
        self, order: EmbedRequest | ClassifyRequest, *, rows: int, opened: Assembly
    ) -> Reading:
        """Return what is to be read, so many rows at a time; `InvalidRequest` for a bad input."""
        check = partial(
            check_inputs,
            order.inputs,
            renderer=opened.renderer,
            vocab=opened.backbone.shape.vocab,
            context=opened.context,
        )
        await self._read(check)
        if isinstance(order, EmbedRequest):
            order = replace(order, inputs=await self._tokenise(order.inputs, opened.renderer))
        return Reading(
            adapter=order.adapter,
            tenant=order.tenant,
            loop=asyncio.get_running_loop(),
            rows=rows,
            order=order,
        )

    async def wait_for(self, begin: Callable[[], Future[ReadT]]) -> ReadT:
        """Return what a thread beside the torch thread gives, unless that ended before it began."""
        try:
            begun = begin()
        except RuntimeError as error:
            raise self._over() from error
        try:
            return await asyncio.wrap_future(begun)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():  # it is the caller who has left
                raise
            raise self._over() from error

    async def _read(self, read: Callable[[], ReadT]) -> ReadT:
        self.coming += 1
        try:
            return await self.wait_for(partial(self._thread.submit, read))
        finally:
            self.coming -= 1

    async def _tokenise(self, inputs: Sequence[Input], renderer: Renderer) -> list[Input]:
        """Return inputs as ids, each taken in by itself: a long list lets others in between."""
        names = map(name_of, range(len(inputs)))
        return [
            Input(ids=await self._read(partial(read_input, one, renderer=renderer, param=name)))
            for one, name in zip(inputs, names, strict=True)
        ]
