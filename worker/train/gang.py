"""Several jobs in one trainer: micro-batches of those that may are computed as one stream.

Everything but the pass through the base is a job's own, and a row of that pass is the same bits
whatever rows are beside it (`models/nn/kernels/rows.py`), so a job cannot tell a gang from being
alone. A gang of one is the ordinary case and takes the same way.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from core.errors import GraftworkError, InvalidData, is_disk_full
from models.spec import Broke, Failed
from worker.train.course import Want, Work
from worker.train.report import Channel
from worker.train.score import Score
from worker.train.tasks import MicroBatch, score_together
from worker.train.turns import LEAD, Dropped, Interrupted, StepLost, Turn

_OUT_OF_MEMORY = Failed(
    code="out_of_memory",
    message="The machine ran out of memory. Lower micro_batch_tokens or max_sequence_length, "
    "or choose a method with fewer parameters.",
    param="training",
)
_NO_ROOM_BESIDE_OTHERS = Broke(
    reason="The machine ran out of memory while it trained others beside this job",
    code="out_of_memory",
    alone=True,
)

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Member:
    """One job: how it goes on, and what it wants next."""

    channel: Channel
    work: Work[None]
    served: int
    """How many tokens it has had."""
    want: Want
    """What it waits for the turn to do."""
    stays_alone: bool = False
    """It was in a stream that failed, perhaps by its fault."""

    @property
    def micro_batch(self) -> MicroBatch | None:
        """What it wants, if that may be computed beside what others want."""
        want = self.want
        if not isinstance(want, MicroBatch) or self.stays_alone or not want.may_share:
            return None
        return want


class Gang:
    """The jobs of this process. They take turns in beats, and share by tokens.

    In a beat, who has had the fewest tokens goes first. Micro-batches join one stream while it is
    no higher than one of them allows (`MicroBatch.most_rows`), which bounds the memory too;
    whoever is `LEAD` ahead of the one who has had the fewest waits, whatever the size of their
    steps. A newcomer starts level with the one who has had the fewest.
    """

    def __init__(self) -> None:
        self.members: list[Member] = []

    def join(self, work: Work[None], channel: Channel) -> None:
        """Let a job make itself ready, and take part from the next beat on."""
        member = Member(channel, work, served=self._fewest(), want=Turn(0))
        self.members.append(member)
        self._go_on(member, partial(next, work))

    def beat(self) -> None:
        """Hear what is asked of each job, then compute what it is the turn of."""
        for member in list(self.members):
            try:
                member.channel.check()
            except (Interrupted, Dropped) as wish:
                self._throw(member, wish)
        chosen = self._choose()
        alone = [member for member in chosen if member.micro_batch is None]
        self._score([member for member in chosen if member.micro_batch is not None])
        for member in alone:
            if isinstance(member.want, Turn):
                self._go_on(member, partial(next, member.work))
            else:
                self._score([member])

    def _choose(self) -> list[Member]:
        chosen, rows, most, fewest = [], 0, 0, self._fewest()
        for member in sorted(self.members, key=lambda member: member.served):
            if member.served - fewest > LEAD:
                break
            if (batch := member.micro_batch) is not None:
                most = max(most, batch.most_rows)
                if rows and rows + batch.rows > most:
                    continue
                rows += batch.rows
            chosen.append(member)
            member.served += member.want.tokens
        return chosen

    def _score(self, members: Sequence[Member]) -> None:
        """Compute what these members want to share, and give each its own."""
        batches = [member.want for member in members if isinstance(member.want, MicroBatch)]
        try:
            scores = score_together(batches) if batches else []
        except Exception as error:
            if len(members) == 1:
                self._throw(members[0], error)
                return
            log.exception("a shared stream failed; its jobs take the step again, alone")
            for member in members:
                member.stays_alone = True
                self._throw(member, StepLost())
        else:
            for member, score in zip(members, scores, strict=True):
                self._send(member, score)

    def _send(self, member: Member, score: Score) -> None:
        self._go_on(member, partial(member.work.send, score))

    def _throw(self, member: Member, error: Exception) -> None:
        self._go_on(member, partial(member.work.throw, error))

    def _go_on(self, member: Member, advance: Callable[[], Want]) -> None:
        """Let a job do what is its own until it wants something; if it ends, say how."""
        try:
            member.want = advance()
        except (StopIteration, Dropped):
            self._leave(member)
        except Exception as error:  # noqa: BLE001 - one job's bug is not its neighbours'
            member.channel.say(explain(error, shared=len(self.members) > 1))
            self._leave(member)

    def _leave(self, member: Member) -> None:
        self.members.remove(member)
        member.channel.close()

    def _fewest(self) -> int:
        return min((member.served for member in self.members), default=0)


def explain(error: Exception, *, shared: bool = False) -> Failed | Broke:
    """Return what to say of a job that ended by an error: its own, or a fault of the machinery.

    What is missing of memory that it shares with others may be what they hold.
    """
    if isinstance(error, GraftworkError):
        problems = error.problems if isinstance(error, InvalidData) else []
        return Failed(code=error.code, message=error.message, param=error.param, problems=problems)
    if is_out_of_memory(error):
        return _NO_ROOM_BESIDE_OTHERS if shared else _OUT_OF_MEMORY
    log.error("the job met an unexpected error", exc_info=error)
    if isinstance(error, OSError) and is_disk_full(error):
        return Broke(reason="The trainer could not write to its disk", code="storage_full")
    return Broke(reason=f"The training process met an unexpected error ({type(error).__name__})")


def is_out_of_memory(error: Exception) -> bool:
    """Tell running out of memory, for which torch has no one exception on the CPU, from a bug."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
