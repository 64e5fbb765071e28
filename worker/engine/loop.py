"""What happens in the engine's one torch thread: admit, compute a step, tell the callers."""

import time
from collections.abc import Callable
from ctypes import c_int32

import structlog

from core.errors import GraftworkError
from worker.engine.adapters import AdapterCache
from worker.engine.blocks import Blocks
from worker.engine.drafts import Drafter
from worker.engine.generation import Generation
from worker.engine.layout import bucket
from worker.engine.line import Line
from worker.engine.metrics import Metrics
from worker.engine.outcome import Outcome
from worker.engine.reader import Reader
from worker.engine.reading import Reading
from worker.engine.request import Outbox, Request
from worker.engine.resident import Resident
from worker.engine.runner import Runner
from worker.engine.sampler import Drawn
from worker.engine.scheduler import Scheduler, Step
from worker.engine.sequence import Choice, Excerpt, Sequence
from worker.engine.shared import SharedPrompts
from worker.engine.stepper import Computed, Stepper
from worker.engine.verifier import Verifier
from worker.engine.writer import Writer

Rows = list[Choice] | list[Excerpt]

OPENING_SECONDS = 0.005
"""How long requests are put to the model between two steps: the rows of others wait for that."""

log = structlog.get_logger(__name__)


class Loop:
    """Owns every row; nothing in here may be called from another thread."""

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        blocks: Blocks,
        shared: SharedPrompts,
        runner: Runner,
        writer: Writer,
        reader: Reader,
        outbox: Outbox,
        metrics: Metrics,
        adapters: Callable[..., AdapterCache],
        drafter: Drafter | None = None,
        called: c_int32,
        about_to_compute: Callable[[], None] = lambda: None,
    ) -> None:
        """Take the parts; `called` is 1 while something waits for steps to end."""
        self.scheduler = scheduler
        self._line = Line(scheduler)
        self.adapters = adapters(
            failed=self.fail_adapter,
            evicted=runner.forget,
            lay_out=runner.prepare,
            wanted=self._line.wanted,
        )
        self._blocks = blocks
        self._shared = shared
        self._runner = runner
        self._writer = writer
        self._reader = reader
        self._outbox = outbox
        self._metrics = metrics
        self._about_to_compute = about_to_compute
        self._called = called
        self._verifier = Verifier(blocks, metrics, take=self._take)
        self._stepper = Stepper(
            runner, writer, terms=self.adapters.terms, drafter=drafter, called=called
        )

    @property
    def waiting(self) -> int:
        """How many rows wait for a slot or an adapter."""
        return self._line.rows

    def add(self, request: Request) -> None:
        """Take a request; it gets rows once its adapter is here."""
        self._line.add(request)

    def cancel(self, request: Request) -> None:
        """Forget a request; one that has ended already is fine."""
        self._line.leave(request)
        while request.sequences:
            self._release(request.sequences.pop(), clean=False)
        self.adapters.let_go(request)

    def fail(self, request: Request, error: GraftworkError) -> None:
        """End a request with an error, which its caller gets even if its rows cannot be freed."""
        self._outbox.put(request, error)
        self.cancel(request)

    def fail_adapter(self, digest: str, error: GraftworkError) -> None:
        """End every request that waits for an adapter that cannot be loaded."""
        for request in self._line:
            if request.adapter is not None and request.adapter.digest == digest:
                self.fail(request, error)

    def fail_all(self, error: GraftworkError) -> None:
        """Tell every request that the engine ends; rows stay, for nobody comes after them."""
        running = [row.request for row in self.scheduler.running]
        for request in dict.fromkeys([*running, *self._line]):
            self._outbox.put(request, error)

    def step(self) -> bool:
        """Admit what can be, compute a step, deliver its lines; False if there was no work.

        Others may follow it by themselves, so what is known before it is delivered before.
        """
        left = self._take_in()
        self._outbox.flush()
        self._shared.look_up(self.scheduler.running)
        step = self.scheduler.next_step()
        self.adapters.pace.hurried = step is not None
        if step is not None:
            self._about_to_compute()
            began = time.perf_counter()
            if self._runner.goes_by_slots(step):
                self._compact()
            steps = self._run(self._stepper.extend(step))
            self._metrics.count_steps(steps, seconds=time.perf_counter() - began)
        else:
            self._runner.rest()
        self._outbox.flush()
        return step is not None or left

    def _take_in(self) -> bool:
        """Give slots to what can have one, now that some versions may come in and others go.

        Says whether something could have had rows, but is left for behind the next step.
        """
        more = True
        while more:
            left = self._open()
            self._admit()
            more = self.adapters.settle()
        if left:
            self._called.value = 1  # no further step follows the next one by itself
        return left

    def _open(self) -> bool:
        """Give rows to requests whose adapter is here; tenants take turns to be asked for.

        That is also asked for requests whose version has left again while their rows waited. What
        takes long is gone on with behind the next step: True if anything is left.
        """
        end = time.monotonic() + OPENING_SECONDS
        left = False
        for request in self._line:
            if not self.adapters.ready(request):  # asked of all, so that adapters come meanwhile
                continue
            if self._line.lacks_rows(request) and time.monotonic() <= end:
                self._line.open(request)
                self._add_rows(request, until=end)
            left = left or self._line.lacks_rows(request)
        return left

    def _rows_of(self, request: Request, *, until: float) -> Rows:
        resident = self._resident(request)
        if isinstance(request, Generation):
            return self._writer.open(request, resident)
        if isinstance(request, Reading):
            return self._reader.open(request, resident, until=until)
        raise TypeError("A request generates or reads.")

    def _add_rows(self, request: Request, *, until: float) -> None:
        """Queue rows of a request; one request's fault must not stop the others."""
        try:
            rows = self._rows_of(request, until=until)
        except GraftworkError as error:
            self.fail(request, error)
        except Exception as error:
            log.warning("request_unopened", exc_info=error)
            self._fault(request, "This request could not be put to the model.")
        else:
            for row in rows:
                request.sequences.append(row)
                self.scheduler.add(row)
            if request.has_more:
                self._line.add(request)

    def _admit(self) -> None:
        for sequence in self.scheduler.admit(lambda row: self.adapters.ready(row.request)):
            self._start(sequence)

    def _compact(self) -> None:
        """Bring rows together in the first slots."""
        for sequence, source in self.scheduler.compact(rows=bucket(len(self.scheduler.running))):
            length = sequence.footing.rows + sequence.computed
            self._blocks.move(source, sequence.slot or 0, length=length)

    def _start(self, sequence: Sequence) -> None:
        """Hold the adapter, and begin behind what it has computed of the prompt already."""
        resident = self._resident(sequence.request)
        if resident is not None:
            self.adapters.hold(sequence.request)
            if (prefix := resident.prefix) is not None:
                shared = list(prefix.token_ids)
                if shared and sequence.prompt[: len(shared)] == shared:
                    sequence.computed = min(len(shared), sequence.skippable)
                length = sequence.footing.rows + sequence.computed
                self._blocks.fill(sequence.slot or 0, prefix, length=length)
        sequence.cached = sequence.computed
        self._shared.name(sequence)
        if isinstance(sequence, Choice):
            self._writer.start(sequence)

    def _resident(self, request: Request) -> Resident | None:
        return self.adapters.find(request.adapter.digest) if request.adapter else None

    def _run(self, step: Step) -> int:
        """Compute a step, and return how many it became: others may have followed it.

        If it fails, compute each sequence alone, undrafted: only the faulty ones end.
        """
        try:
            computed = self._stepper.compute(step)
        except Exception as error:
            self._runner.forget()
            self._verifier.wipe(step)
            sequences = list(step.sequences)
            log.warning("step_failed", rows=len(sequences), exc_info=error)
            if len(sequences) > 1 or step.drafts:
                for part in step.alone():
                    if all(sequence.slot is not None for sequence in part.sequences):
                        self._run(part)
                return 1
            self._fault(sequences[0].request, "This request could not be computed.")
            return 1
        self._apply(step, computed)
        return max(1, len(computed.drawn))

    def _apply(self, step: Step, computed: Computed) -> None:
        self._read(step, computed.outcome)
        for drawn in computed.drawn:
            if step.drafts:
                self._verifier.take(step, drawn)
            else:
                self._take_all(step.drawing(), drawn)
        self._writer.tell_readers(step.drawing())

    def _read(self, step: Step, outcome: Outcome) -> None:
        """Take what prompts gave as they were read."""
        for chunk in step.chunks:
            chunk.sequence.computed = chunk.stop
            cached = chunk.sequence.cached if chunk.ends_prompt else 0
            self._metrics.count_prompt(chunk.stop - chunk.start, cached=cached)
        for chunk, part_d in outcome.pooled:
            if isinstance(chunk.sequence, Excerpt):
                self._reader.pool(chunk.sequence, part_d)
        scores = dict(outcome.scores)
        for chunk in step.chunks:
            row = chunk.sequence
            if row.slot is not None:
                self._shared.keep(row)
            if isinstance(row, Excerpt):
                self._reader.score(row, scores.get(chunk, []))
                if chunk.ends_prompt and row.slot is not None:
                    self._close(row)
            elif isinstance(row, Choice) and row.slot is not None:
                self._writer.echo(row, chunk, scores.get(chunk, []))

    def _take_all(self, choices: list[Choice], drawn: list[Drawn]) -> None:
        """Take a token of each row that is still here: another one's fault may have ended it."""
        taken = 0
        for choice, one in zip(choices, drawn, strict=True):
            if choice.slot is not None:
                taken += 1
                self._take(choice, one)
        self._metrics.count_drawn(taken)

    def _take(self, choice: Choice, drawn: Drawn) -> None:
        choice.computed = len(choice.prompt) + len(choice.generated)  # all that it is drawn behind
        if not drawn.finite:
            message = "The network's output for this request is not a number."
            self._fault(choice.request, message)
        elif self._writer.take(choice, drawn):
            self._end(choice)
            if not choice.request.sequences:
                self._writer.end(choice.request)
                self.adapters.let_go(choice.request)

    def _close(self, excerpt: Excerpt) -> None:
        """Take what an input gave; the next one has its place before the next step."""
        reading = excerpt.request
        try:
            self._reader.close(excerpt)
        except GraftworkError as error:
            self._fault(reading, error.message)
            return
        except Exception as error:
            log.warning("request_unread", exc_info=error)
            self._fault(reading, "This request could not be read.")
            return
        self._end(excerpt)
        if reading.ended and reading.plan is not None:
            self._outbox.put(reading, reading.plan.reply())
            self.adapters.let_go(reading)

    def _end(self, sequence: Sequence) -> None:
        self._release(sequence, clean=True)
        sequence.request.sequences.remove(sequence)

    def _fault(self, request: Request, message: str) -> None:
        self._metrics.faults.inc()
        self.fail(request, GraftworkError(message, code="engine_fault"))

    def _release(self, sequence: Sequence, *, clean: bool) -> None:
        slot = sequence.slot
        self.scheduler.remove(sequence)
        if slot is None:
            return
        if not clean:
            self._blocks.wipe(slot, length=min(sequence.reach, self._blocks.context))
