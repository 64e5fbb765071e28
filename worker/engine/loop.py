"""What happens in the engine's one torch thread: admit, compute a step, tell the callers."""

import time
from collections.abc import Callable
from functools import cache
from typing import Literal

import structlog

from core.errors import GraftworkError
from models.nn.chat import Renderer
from models.spec import GenerateDelta, GenerateEnd, GenerateStart
from worker.engine.adapters import AdapterCache
from worker.engine.blocks import Blocks
from worker.engine.generation import Generation, Outbox
from worker.engine.metrics import Metrics
from worker.engine.runner import Outcome, Runner, bucket
from worker.engine.sampler import Draw, Drawn, sample, score
from worker.engine.scheduler import Chunk, Scheduler, Step
from worker.engine.sequence import Sequence, choice_seed
from worker.engine.text import Piece, TextStream

COLDEST = 1e-4
"""Below this temperature a row is greedy: the quotient of its logits would leave float32."""

Reason = Literal["stop", "length"]

log = structlog.get_logger(__name__)


class Loop:
    """Owns every row; nothing in here may be called from another thread."""

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        blocks: Blocks,
        runner: Runner,
        renderer: Renderer,
        outbox: Outbox,
        metrics: Metrics,
        adapters: Callable[..., AdapterCache],
    ) -> None:
        self.scheduler = scheduler
        self.adapters = adapters(failed=self.fail_adapter, evicted=runner.forget)
        self._blocks = blocks
        self._runner = runner
        self._renderer = renderer
        self._bytes_of = cache(renderer.token_bytes)
        self._outbox = outbox
        self._metrics = metrics

    def add(self, generation: Generation, *, limit: int, seed: int) -> None:
        """Queue a row for every choice of a request; each may generate `limit` tokens."""
        sampling = generation.sampling
        for index in range(sampling.n):
            sequence = Sequence(
                generation=generation,
                index=index,
                prompt=generation.prompt,
                limit=limit,
                seed=choice_seed(seed, index),
                text=self._text(stop=sampling.stop, with_tokens=sampling.logprobs),
                echo=self._text(stop=(), with_tokens=True)
                if sampling.echo and sampling.logprobs
                else None,
            )
            generation.sequences.append(sequence)
            self.scheduler.add(sequence)

    def cancel(self, generation: Generation) -> None:
        """Forget a request; one that has ended already is fine."""
        for sequence in generation.sequences:
            self._release(sequence, clean=False)
        generation.sequences.clear()

    def fail(self, generation: Generation, error: GraftworkError) -> None:
        """End a request with an error."""
        self.cancel(generation)
        self._outbox.put(generation, error)

    def fail_adapter(self, digest: str, error: GraftworkError) -> None:
        """End every request that waits for an adapter that cannot be loaded."""
        waiting = {
            sequence.generation: None
            for sequence in self.scheduler.waiting
            if sequence.adapter is not None and sequence.adapter.digest == digest
        }
        for generation in waiting:
            self.fail(generation, error)

    def fail_all(self, error: GraftworkError) -> None:
        """End every request."""
        everybody = (*self.scheduler.running, *self.scheduler.waiting)
        for generation in {sequence.generation: None for sequence in everybody}:
            self.fail(generation, error)

    def step(self) -> bool:
        """Admit what can be, compute one step, deliver its lines; False if there was no work."""
        self._admit()
        step = self.scheduler.next_step()
        if step is not None:
            began = time.perf_counter()
            self._run(step)
            self._metrics.step_seconds.observe(time.perf_counter() - began)
        self._outbox.flush()
        return step is not None

    def _admit(self) -> None:
        ready = self.adapters.ready
        for sequence in self.scheduler.admit(
            lambda waiting: waiting.adapter is None or ready(waiting.adapter)
        ):
            if sequence.adapter is not None:
                self.adapters.pin(sequence.adapter.digest)
            self._start(sequence)
        for sequence, source in self.scheduler.compact(rows=bucket(len(self.scheduler.running))):
            self._blocks.move(source, sequence.slot or 0, length=sequence.computed)

    def _start(self, sequence: Sequence) -> None:
        generation = sequence.generation
        if not generation.started:
            generation.started = True
            self._outbox.put(generation, GenerateStart(prompt_tokens=len(generation.prompt)))
        if generation.sampling.echo and sequence.echo is None:
            text = self._renderer.decode(sequence.prompt)
            self._outbox.put(generation, GenerateDelta(index=sequence.index, text=text))

    def _run(self, step: Step) -> None:
        """Compute a step; if it fails, each sequence alone, so that only the faulty ones end."""
        try:
            outcome, drawn = self._compute(step)
        except Exception as error:
            self._runner.forget()
            sequences = list(step.sequences)
            log.warning("step_failed", rows=len(sequences), exc_info=error)
            if len(sequences) > 1:
                for part in step.alone():
                    if all(sequence.slot is not None for sequence in part.sequences):
                        self._run(part)
                return
            self._fault(sequences[0], f"This request could not be computed: {error}.")
            return
        self._apply(step, outcome, drawn)

    def _compute(self, step: Step) -> tuple[Outcome, list[Drawn]]:
        """Return what a step gives without changing any sequence; so it can be tried again."""
        digests = {item.adapter.digest for item in step.sequences if item.adapter}
        outcome = self._runner.run(step, terms=self.adapters.terms(digests))
        draws = [self._draw(sequence) for sequence in outcome.rows]
        return outcome, sample(outcome.logits_nv, draws=draws) if draws else []

    def _draw(self, sequence: Sequence) -> Draw:
        sampling = sequence.sampling
        greedy = sampling.temperature < COLDEST
        early = len(sequence.generated) < sampling.min_tokens
        return Draw(
            temperature=0.0 if greedy else sampling.temperature,
            top_p=sampling.top_p,
            uniform=0.0 if greedy else sequence.next_uniform(),
            top_logprobs=sampling.top_logprobs if sampling.logprobs else None,
            banned=tuple(self._renderer.eos_ids) if early else (),
        )

    def _apply(self, step: Step, outcome: Outcome, drawn: list[Drawn]) -> None:
        for sequence in step.decodes:
            sequence.computed += 1
        for chunk in step.chunks:
            chunk.sequence.computed = chunk.stop
            self._metrics.tokens.labels("prompt").inc(chunk.stop - chunk.start)
        for chunk, logits_tv in outcome.echoes:
            tokens = chunk.sequence.prompt[chunk.start + 1 : chunk.stop + 1]
            top = chunk.sequence.sampling.top_logprobs
            scored = score(logits_tv[: len(tokens)], tokens=tokens, top=top) if tokens else []
            self._echo(chunk, scored)
        for sequence, token in zip(outcome.rows, drawn, strict=True):
            if sequence.slot is not None:
                self._take(sequence, token)
        self._metrics.tokens.labels("completion").inc(len(drawn))

    def _echo(self, chunk: Chunk, scored: list[Drawn]) -> None:
        sequence = chunk.sequence
        if sequence.echo is None:
            return
        first = [Drawn(sequence.prompt[0])] if chunk.start == 0 else []
        pieces = [self._push(sequence.echo, drawn) for drawn in first + scored]
        if chunk.ends_prompt:
            pieces.append(sequence.echo.finish())
        self._tell(sequence, pieces, reason=None)

    def _take(self, sequence: Sequence, drawn: Drawn) -> None:
        """Take a row's next token: tell its text, and end the row if this was its last."""
        if not drawn.finite:
            self._fault(sequence, "The network's output for this request is not a number.")
            return
        sequence.generated.append(drawn.token)
        sequence.generation.completion_tokens += 1
        if drawn.token in self._renderer.eos_ids and not sequence.sampling.ignore_eos:
            self._finish(sequence, [sequence.text.finish()], reason="stop")
            return
        piece = self._push(sequence.text, drawn)
        if sequence.text.stopped:
            self._finish(sequence, [piece], reason="stop")
        elif len(sequence.generated) >= sequence.limit:
            self._finish(sequence, [piece, sequence.text.finish()], reason="length")
        else:
            self._tell(sequence, [piece], reason=None)

    def _finish(self, sequence: Sequence, pieces: list[Piece], *, reason: Reason) -> None:
        generation = sequence.generation
        self._tell(sequence, pieces, reason=reason)
        self._release(sequence, clean=True)
        generation.sequences.remove(sequence)
        if not generation.sequences:
            end = GenerateEnd(
                prompt_tokens=len(generation.prompt), completion_tokens=generation.completion_tokens
            )
            self._outbox.put(generation, end)

    def _tell(self, sequence: Sequence, pieces: list[Piece], *, reason: Reason | None) -> None:
        text = "".join(piece.text for piece in pieces)
        tokens = [token for piece in pieces for token in piece.tokens]
        if text or tokens or reason:
            delta = GenerateDelta(
                index=sequence.index, text=text, tokens=tokens, finish_reason=reason
            )
            self._outbox.put(sequence.generation, delta)

    def _fault(self, sequence: Sequence, message: str) -> None:
        self._metrics.faults.inc()
        self.fail(sequence.generation, GraftworkError(message, code="engine_fault"))

    def _release(self, sequence: Sequence, *, clean: bool) -> None:
        slot = sequence.slot
        self.scheduler.remove(sequence)
        if slot is None:
            return
        if not clean:
            length = len(sequence.prompt) + len(sequence.generated)
            self._blocks.wipe(slot, length=min(length, self._blocks.context))
        if sequence.adapter is not None:
            self.adapters.unpin(sequence.adapter.digest)

    def _text(self, *, stop: tuple[str, ...], with_tokens: bool) -> TextStream:
        return TextStream(bytes_of=self._bytes_of, stop=stop, with_tokens=with_tokens)

    def _push(self, stream: TextStream, drawn: Drawn) -> Piece:
        return stream.push(drawn, visible=drawn.token not in self._renderer.eos_ids)
