"""Starts one worker: `python -m worker`."""

from core.process import die_with_parent
from core.settings import get_settings
from worker.app import celery
from worker.dispatch import get_dispatcher


def main() -> None:
    """Run Celery's worker with a pool of threads: each only watches a child process."""
    die_with_parent()
    get_dispatcher()  # Celery would log why there is none, and go on without
    celery.worker_main(
        [
            "worker",
            "--pool=threads",
            f"--concurrency={get_settings().worker.jobs + 2}",
            "--without-gossip",
            "--without-mingle",
            f"--loglevel={get_settings().log_level}",
        ]
    )


if __name__ == "__main__":
    main()
