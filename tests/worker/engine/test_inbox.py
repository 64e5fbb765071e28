"""What is posted to the engine's thread: its order, and how long a crowd is waited for."""

import threading
import time
from collections.abc import Callable, Generator

from core.errors import GraftworkError, Unavailable
from worker.engine.inbox import GATHER_SECONDS, Inbox, ResultT


def test_what_a_posted_function_posts_has_its_turn_later() -> None:
    inbox, done = Inbox(), list[str]()

    def first() -> None:
        done.append("first")
        inbox.put(lambda: done.append("second"))

    inbox.put(first)
    inbox.run(wait=False)
    assert done == ["first"]
    inbox.run(wait=False)
    assert done == ["first", "second"]


def test_a_crowd_is_gathered_and_no_longer_waited_for() -> None:
    inbox, left = Inbox(), [3]

    def arrive() -> None:
        left[0] -= 1

    def send() -> None:
        for _ in range(3):
            inbox.put(arrive)

    sender = threading.Thread(target=send)
    sender.start()
    inbox.gather(lambda: left[0] > 0)
    sender.join()
    inbox.run(wait=False)
    assert left == [0]


def test_who_is_alone_does_not_wait_and_who_never_comes_is_not_waited_for() -> None:
    def seconds(coming: Callable[[], bool]) -> float:
        began = time.perf_counter()
        Inbox().gather(coming)
        return time.perf_counter() - began

    assert min(seconds(lambda: False) for _ in range(5)) < GATHER_SECONDS / 2
    assert min(seconds(lambda: True) for _ in range(5)) >= GATHER_SECONDS / 2


def test_what_is_asked_is_answered_by_the_thread_that_runs() -> None:
    def once(compute: Callable[[], ResultT]) -> Generator[None, None, ResultT]:
        return compute()
        yield

    inbox = Inbox()
    answer, failure = inbox.ask(once(lambda: 7)), inbox.ask(once(lambda: 1 // 0))
    cancelled = inbox.ask(once(list[int]))
    cancelled.cancel()
    inbox.run(wait=False)
    assert answer.result(0) == 7
    assert isinstance(failure.exception(0), ZeroDivisionError)
    assert cancelled.cancelled()


def test_the_flag_is_up_while_something_waits() -> None:
    inbox, seen = Inbox(), list[int]()

    def look() -> None:
        seen.append(inbox.called.value)

    assert inbox.called.value == 0
    inbox.put(look)
    assert inbox.called.value == 1
    inbox.put(lambda: inbox.put(look))
    inbox.run(wait=True)
    assert seen == [1]  # taken before the flag is lowered: the others still wait
    assert inbox.called.value == 1
    inbox.run(wait=False)
    assert seen == [1, 0]
    assert inbox.called.value == 0


def test_others_have_their_turn_between_two_pieces() -> None:
    inbox, done = Inbox(), list[str]()

    def work() -> Generator[None, None, str]:
        for piece in ("one", "two"):
            done.append(piece)
            yield
        return "three"

    def fail() -> Generator[None, None, str]:
        yield
        raise LookupError

    answer, failed = inbox.ask(work()), inbox.ask(fail())
    dropped = inbox.ask(work())
    inbox.run(wait=False)
    assert done == ["one", "one"]
    dropped.cancel()
    inbox.put(lambda: done.append("a step"))
    for _ in range(3):
        inbox.run(wait=False)
    assert done == ["one", "one", "two", "a step"]
    assert answer.result(timeout=0) == "three"
    assert isinstance(failed.exception(timeout=0), LookupError)


def test_what_is_left_or_comes_later_is_refused_once() -> None:
    """Also what many threads post while it is being closed."""
    inbox, error, told = Inbox(), Unavailable("It is over."), list[GraftworkError]()
    start = threading.Barrier(5)

    def unexpected() -> None:
        raise AssertionError

    def post() -> None:
        start.wait()
        for _ in range(500):
            inbox.put(unexpected, refuse=told.append)

    inbox.put(unexpected)  # nobody cares
    inbox.put(unexpected, refuse=told.append)
    threads = [threading.Thread(target=post) for _ in range(4)]
    for thread in threads:
        thread.start()
    start.wait()
    inbox.close(error)
    for thread in threads:
        thread.join()
    assert told == [error] * (1 + 4 * 500)


def test_who_asks_what_is_never_computed_is_told_why() -> None:
    def work(pieces: int) -> Generator[None, None, str]:
        for _ in range(pieces):
            yield
        return "computed"

    inbox, error = Inbox(), Unavailable("It is over.")
    whole, begun = inbox.ask(work(0)), inbox.ask(work(1))
    inbox.run(wait=False)
    dropped, unseen = inbox.ask(work(0)), inbox.ask(work(0))
    dropped.cancel()
    inbox.close(error)
    assert whole.result(timeout=0) == "computed"
    assert dropped.cancelled()
    for answer in (begun, unseen, inbox.ask(work(0))):
        assert answer.exception(timeout=0) is error
