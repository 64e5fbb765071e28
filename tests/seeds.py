"""Moves every seed, to see which tests owe what they find to their own: `make seeds BY=1000`.

A plugin. All that is drawn in the process of the tests is drawn from other seeds, by them and by
what they call; processes that they start draw what they always do.
"""

import pytest

COMPARES_PROCESSES = "test_a_process_says_what_a_call_says"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seeds-by", type=int, default=1000, help="what is added to every seed")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    import torch  # which `conftest.py` has to prepare for

    by: int = session.config.getoption("seeds_by")
    manual_seed = torch.manual_seed

    class Generator(torch.Generator):
        def manual_seed(self, seed: int) -> torch.Generator:
            return super().manual_seed(seed + by)

    torch.manual_seed = lambda seed: manual_seed(seed + by)
    torch.Generator = Generator  # type: ignore[misc]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.name == COMPARES_PROCESSES:
            item.add_marker(pytest.mark.skip(reason="one of both sides is another process"))
