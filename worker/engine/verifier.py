"""What becomes of drafts once it is known what is drawn: right tokens are taken, wrong ones go.

No step has counted what a draft wrote into its row's slot, so the next one writes over it. Only
what is no number is wiped, for that would reach every row that attends over it.
"""

from collections.abc import Callable, Sequence
from itertools import islice, takewhile

from worker.engine.blocks import Blocks
from worker.engine.metrics import Metrics
from worker.engine.sampler import Drawn
from worker.engine.scheduler import Draft, Step
from worker.engine.sequence import Choice


class Verifier:
    """Has taken, of what is drawn in steps with drafts, what steps of one token would draw."""

    def __init__(
        self, blocks: Blocks, metrics: Metrics, *, take: Callable[[Choice, Drawn], None]
    ) -> None:
        """`take` adds a token to a row, which may end with it and lose its slot."""
        self._blocks = blocks
        self._metrics = metrics
        self._take = take

    def take(self, step: Step, drawn: Sequence[Drawn]) -> None:
        """Take what was drawn behind each row's last token and behind those of its draft."""
        rows = iter(drawn)
        told = [
            self._finite(choice, step, list(islice(rows, 1 + len(step.draft(choice).tokens))))
            for choice in step.drawing()
        ]
        for choice, own in zip(step.drawing(), told, strict=True):
            self._take_right(choice, own, draft=step.draft(choice))

    def wipe(self, step: Step) -> None:
        """Zero what the drafts of a step that failed may have left behind."""
        for choice in step.drafts:
            self._wipe(choice, step)

    def _finite(self, choice: Choice, step: Step, drawn: list[Drawn]) -> list[Drawn]:
        """Return what was drawn before the first drafted row without numbers, which is wiped."""
        kept = [drawn[0], *takewhile(lambda one: one.finite, drawn[1:])]
        if len(kept) < len(drawn):
            self._wipe(choice, step, kept=len(kept) - 1)
        return kept

    def _wipe(self, choice: Choice, step: Step, *, kept: int = 0) -> None:
        """Zero the positions of a draft but for its first tokens; no step has counted them yet."""
        if choice.slot is not None:
            length = len(step.draft(choice).tokens) - kept
            self._blocks.wipe(choice.slot, start=choice.reach + kept, length=length)

    def _take_right(self, choice: Choice, drawn: list[Drawn], *, draft: Draft) -> None:
        """Take what was drawn behind the last token, and behind drafted ones as far as right."""
        right = _count_right(draft, drawn) if draft.tokens else 0
        request = choice.request
        if draft.predicted:
            request.drafted_tokens += len(draft.tokens)
        taken = 0
        for one in drawn[: right + 1]:
            if choice.slot is None:  # its answer has ended
                break
            taken += 1
            if draft.predicted and taken <= right:  # counted before it is told with the last one
                request.accepted_tokens += 1
            self._take(choice, one)
        accepted = min(taken, right)
        rejected = len(draft.tokens) - accepted
        self._metrics.count_drawn(taken, accepted=accepted, rejected=rejected)


def _count_right(draft: Draft, drawn: Sequence[Drawn]) -> int:
    """Return how many drafted tokens were drawn, each behind right ones."""
    pairs = zip(draft.tokens, drawn, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1].token, pairs))
