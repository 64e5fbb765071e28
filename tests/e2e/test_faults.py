"""Parts are killed while a job runs and people call: nothing is lost, nothing is left behind."""

import os
import signal
import time
from collections.abc import Iterator

import pytest
from openai import APIError

from tests.e2e.conftest import System, chat_rows, start_system, train, wait_for_end
from tests.processes import descendants, is_alive, wait_for

LONG = {"n_epochs": 40, "batch_size": 2}
ROWS = chat_rows({f"{n}?": f"{n}!" for n in range(10)})
STEPS = 200


@pytest.fixture
def mortal(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[System]:
    """A system of the test's own, to hurt."""
    yield from start_system("embedded", tmp_path_factory.mktemp("mortal"), request)


def answers(system: System) -> bool:
    try:
        with system.client() as client:
            client.with_options(max_retries=0).chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "x"}], max_tokens=2
            )
    except APIError:
        return False
    return True


def test_every_part_may_be_killed_in_the_middle_of_a_job(mortal: System) -> None:
    with mortal.client().with_options(max_retries=8) as client:
        job = train(client, ROWS, hyperparameters=LONG)
        extra: dict[str, int] = {}

        def step() -> int:
            extra.update((client.fine_tuning.jobs.retrieve(job.id).model_extra or {})["graftwork"])
            return extra["step"]

        for number, part in enumerate(
            ("valkey-server", "worker.train.run", "worker", "worker.engine", "api")
        ):
            wait_for(lambda wanted=5 * (number + 1): step() >= wanted, seconds=60)
            for pid in mortal.pids(part):
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.3)
        ended = wait_for_end(client, job.id)
        assert ended.status == "succeeded", ended.error
        told = [
            event.data["step"]
            for event in client.fine_tuning.jobs.list_events(job.id, limit=100)
            if event.type == "metrics"
        ]
        assert told == list(range(STEPS, 0, -1))
        assert len([model for model in client.models.list() if model.id.startswith("ft:")]) == 1
    wait_for(lambda: answers(mortal), seconds=60)


def test_kill_everything_at_once_and_start_again(mortal: System) -> None:
    with mortal.client() as client:
        job = train(client, ROWS, hyperparameters=LONG)
        wait_for(
            lambda: (
                (client.fine_tuning.jobs.retrieve(job.id).model_extra or {})["graftwork"]["step"]
                >= 10
            ),
            seconds=60,
        )
    everything = [mortal.process.pid, *descendants(mortal.process.pid)]
    mortal.process.kill()
    mortal.process.wait()
    wait_for(lambda: not [pid for pid in everything if is_alive(pid)], seconds=5)
    mortal.start()
    with mortal.client() as client:
        assert wait_for_end(client, job.id).status == "succeeded"
