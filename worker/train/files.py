"""The files of a job in the forms that its method needs, each read when it is first asked for."""

from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.answers import index_labels, read_pairs
from models.dataset import Row
from models.nn.chat import Example, Renderer
from models.nn.problem import Pair
from models.spec import TrainOrder
from worker.train.data import Cut, Examples, keep_end, keep_start, read_examples
from worker.train.rows import Show, render_example, render_prompt


class Files:
    """The training file, and the validation file if there is one."""

    def __init__(
        self,
        order: TrainOrder,
        *,
        renderer: Renderer,
        max_length: int,
        stay_alive: Callable[[], None],
    ) -> None:
        self.renderer = renderer
        self._order = order
        self._max_length = max_length
        self._stay_alive = stay_alive

    @property
    def training_path(self) -> Path:
        """Where the training file lies."""
        return Path(self._order.training_file)

    @property
    def validation_path(self) -> Path | None:
        """Where the validation file lies."""
        return Path(self._order.validation_file) if self._order.validation_file else None

    @cached_property
    def training(self) -> Examples:
        """The training file as tokens and labels."""
        return self._read(self.training_path, partial(render_example, renderer=self.renderer))

    @cached_property
    def prompts(self) -> Examples:
        """The training file as questions without their answers."""
        return self._read(self.training_path, self._prompt, cut=keep_end)

    def validation(
        self, *, show: Show | None = None, max_length: int | None = None
    ) -> Examples | None:
        """Return the validation file as tokens and labels, with examples shown before.

        They may take rows beyond what is trained; `max_length` tokens are kept then.
        """
        if self.validation_path is None:
            return None
        render = partial(render_example, renderer=self.renderer, show=show)
        return self._read(self.validation_path, render, max_length=max_length)

    def validation_prompts(self) -> Examples | None:
        """Return the validation file as questions."""
        path = self.validation_path
        return None if path is None else self._read(path, self._prompt, cut=keep_end)

    def pairs(self) -> Iterator[Pair]:
        """Go through the training file's questions and answers."""
        return read_pairs(self.training_path)

    def targets(self, path: Path, labels: tuple[str, ...]) -> NDArray[np.int64]:
        """Return of every row the index of its answer among `labels`."""
        found = index_labels(path, labels, param=_param(path, self._order))
        return np.array(found, dtype=np.int64)

    def _prompt(self, row: Row) -> Example:
        ids = render_prompt(row, renderer=self.renderer)
        return Example(ids, [False] * len(ids))

    def _read(
        self,
        path: Path,
        render: Callable[[Row], Example],
        *,
        cut: Cut = keep_start,
        max_length: int | None = None,
    ) -> Examples:
        return read_examples(
            path,
            folder=Path(self._order.work_folder),
            render=render,
            cut=cut,
            max_length=max_length or self._max_length,
            param=_param(path, self._order),
            stay_alive=self._stay_alive,
        )


def _param(path: Path, order: TrainOrder) -> str:
    return "training_file" if str(path) == order.training_file else "validation_file"
