"""Jobs that are trained together: each comes to what it comes to alone, to the bit."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from models.nn import kernels
from models.nn.backbone import Backbone, pick_dtype
from models.nn.kernels import rows as kernel
from models.nn.kernels.native import library, takes
from tests.tiny import make_tiny_base
from tests.worker.train.conftest import ROWS, Job, Recording, values_of, weights_hash
from worker.train import gang as module
from worker.train.gang import Gang
from worker.train.run import load_backbone, train
from worker.train.turns import Dropped

WIDE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 288,  # more than the tokenizer's, so that the head too is one for C++
}
SHORT = [{"text": letter} for letter in "abcdefgh"]
"""Streams of very few rows: for those a matrix library sums in another order."""
DTYPES = ["auto", "float32"]
"""What a processor without products in bfloat16 trains in only if told to is not promised."""
JOBS: list[dict[str, Any]] = [
    {"method": {"type": "lora", "rank": 4, "dropout": 0.1}, "validation": ROWS[:3]},
    {"method": {"type": "ia3"}, "rows": SHORT, "loop": {"batch_size": 1, "scheduler": "constant"}},
    {
        "method": {"type": "soft_prompt", "prompt_length": 3},
        "loop": {"batch_size": 2, "learning_rate": 0.1, "micro_batch_tokens": 60},
    },
    {
        "method": {"type": "dora", "rank": 2, "dropout": 0.3},
        "loop": {"scheduler": "cosine", "weight_decay": 0.1, "batch_size": 3},
    },
    {"method": {"type": "llama_adapter_v2"}, "rows": ROWS[7:], "loop": {"max_grad_norm": 0.01}},
    {"method": {"type": "prefix", "prefix_length": 2}, "rows": ROWS[:5]},
    {"method": {"type": "bottleneck"}, "rows": SHORT[:4], "loop": {"batch_size": 2}},
    {"method": {"type": "ln_tuning"}, "loop": {"max_tokens": 150, "n_epochs": 1, "batch_size": 1}},
]


@pytest.fixture(scope="session")
def wide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("wide"), **WIDE)


@pytest.fixture
def make_order(tmp_path, wide_folder):
    made = []

    def make(*, loop=None, **values):
        made.append(values)
        job = Job(tmp_path / f"job-{len(made)}", wide_folder)
        return job.order(loop={"n_epochs": 1, "batch_size": 4, **(loop or {})}, **values)

    return make


def run_together(orders, channels=None):
    """Train orders in one gang; return what was said of each."""
    channels = channels or [Recording() for _ in orders]
    gang = Gang()
    for order, channel in zip(orders, channels, strict=True):
        gang.join(train(order, channel), channel)
    while gang.members:
        gang.beat()
    return [channel.messages for channel in channels]


IA3 = {"type": "ia3"}
LARGE = {"batch_size": 10, "micro_batch_tokens": 1024}
"""Few of such steps fill a stream."""


def tokens_of(channel):
    """How many tokens a job has trained on."""
    return max(getattr(message, "trained_tokens", 0) for message in channel.messages)


def check_equal(found, expected):
    assert type(found[-1]).__name__ == "Succeeded"
    assert values_of(found) == values_of(expected)
    assert weights_hash(found) == weights_hash(expected)


@pytest.fixture
def together(monkeypatch):
    """How many jobs shared each stream."""
    counts = []

    def spy(shares):
        counts.append(len(shares))
        return score_together(shares)

    score_together = module.score_together
    monkeypatch.setattr(module, "score_together", spy)
    return counts


@pytest.fixture
def heights(monkeypatch):
    """How many rows each stream had."""
    seen = []

    def spy(shares):
        seen.append(sum(share.tokens for share in shares))
        return score_together(shares)

    score_together = module.score_together
    monkeypatch.setattr(module, "score_together", spy)
    return seen


@pytest.fixture(params=["as_built", "off"])
def native(request):
    """The C++ kernels, if they are built, or none."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "off":
            patch.setenv("GRAFTWORK_NATIVE", "off")
        _forget_what_was_chosen()
        yield
    _forget_what_was_chosen()


def _forget_what_was_chosen():
    for chosen in (kernels.native.load, kernels._choose, load_backbone):
        chosen.cache_clear()


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("jobs", [JOBS[:2], JOBS[:5], JOBS])
def test_a_job_in_a_gang_is_that_job_alone(make_order, together, jobs, dtype):
    jobs = [{**job, "loop": {**job.get("loop", {}), "dtype": dtype}} for job in jobs]
    alone = [run_together([make_order(**job)])[0] for job in jobs]
    assert max(together) == 1
    found = run_together([make_order(**job) for job in jobs])
    assert max(together) == len(jobs)
    for said, expected in zip(found, alone, strict=True):
        check_equal(said, expected)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("dtype", DTYPES)
def test_of_rows_that_begin_alike_gradients_are_summed_as_alone(make_order, together, dtype):
    start = "It is the day before the one that all of them had been told about: "
    tails = [("a" * 9, "b" * 40, "c" * 70), ("a" * 70, "b" * 40, "c" * 9)]
    loop = {"batch_size": 3, "n_epochs": 3, "micro_batch_tokens": 512, "dtype": dtype}
    jobs = [
        {
            "method": {"type": "lora", "rank": 4},
            "rows": [{"text": start + tail} for tail in own],
            "loop": loop,
        }
        for own in tails
    ]
    alone = [run_together([make_order(**job)])[0] for job in jobs]
    found = run_together([make_order(**job) for job in jobs])
    assert max(together) == len(jobs)
    for said, expected in zip(found, alone, strict=True):
        check_equal(said, expected)


@pytest.fixture
def three_threads():
    """Of which the shares of a stream's rows end anywhere."""
    threads = torch.get_num_threads()
    yield 3
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Gemma"])
def test_a_job_is_the_same_whatever_a_thread_computes(tmp_path, three_threads, together, family):
    base_folder = make_tiny_base(tmp_path / "base", family=family, **WIDE)
    jobs = [
        {
            "method": {"type": "lora", "rank": 4},
            "rows": [{"text": letter * length} for letter, length in zip("abc", own, strict=True)],
            "loop": {"batch_size": 3, "n_epochs": 6, "micro_batch_tokens": 512},
            "threads": three_threads,
        }
        for own in ((31, 20, 27), (40, 30, 33))
    ]

    def orders(name):
        return [
            Job(tmp_path / f"{name}-{n}", base_folder).order(**job) for n, job in enumerate(jobs)
        ]

    alone = [run_together([order])[0] for order in orders("alone")]
    found = run_together(orders("together"))
    assert max(together) == len(jobs)
    for said, expected in zip(found, alone, strict=True):
        check_equal(said, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_higher_streams_are_shared_where_no_product_knows_its_height(
    make_order, wide_folder, heights, dtype
):
    precision = pick_dtype() if dtype == "auto" else torch.float32
    own = library() is not None and takes(torch.empty(1, dtype=precision))
    bound = Backbone.load(wide_folder, dtype=precision).shared_rows
    assert bound == (kernel.OWN_ROWS if own else kernel.SHARED_ROWS)
    jobs = [{**job, "rows": ROWS, "loop": {**LARGE, "dtype": dtype}} for job in JOBS[:5]]
    alone = [run_together([make_order(**job)])[0] for job in jobs]
    heights.clear()
    found = run_together([make_order(**job) for job in jobs])
    for said, expected in zip(found, alone, strict=True):
        check_equal(said, expected)
    assert 0.75 * bound < max(heights) <= bound


def test_jobs_of_small_micro_batches_share_low_streams(make_order, heights):
    job = {"rows": ROWS, "loop": {"batch_size": 5, "micro_batch_tokens": 300, "dtype": "auto"}}
    run_together([make_order(**job) for _ in range(5)])
    assert 0.75 * kernel.SHARED_ROWS < max(heights) <= kernel.SHARED_ROWS


def test_who_has_products_computed_otherwise_shares_with_nobody(make_order, together):
    scaled = {"type": "ia3", "target_modules": ["up_proj"], "feedforward_modules": ["up_proj"]}
    jobs = [
        {"method": method, "loop": {"dtype": "auto"}} for method in (scaled, {"type": "lora"}, IA3)
    ]
    alone = [run_together([make_order(**job)])[0] for job in jobs]
    together.clear()
    found = run_together([make_order(**job) for job in jobs])
    assert max(together) == 2
    for said, expected in zip(found, alone, strict=True):
        check_equal(said, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_head_is_read_once_for_all_where_no_job_can_tell(
    make_order, together, monkeypatch, dtype
):
    asked = []

    def spy(backbone, rows_nd, *, targets_n):
        asked.append(len(rows_nd))
        return losses(backbone, rows_nd, targets_n=targets_n)

    losses = Backbone.losses
    monkeypatch.setattr(Backbone, "losses", spy)
    run_together([make_order(rows=SHORT, loop={"dtype": dtype}) for _ in range(3)])
    native = library()
    as_one = native is not None and dtype == "auto"
    assert len(asked) == (len(together) if as_one else sum(together))
    assert max(together) == 3


def by_height(x, weight, bias=None):
    """Sum in an order that depends on how many rows there are, as a library may."""
    cut = 64 + len(x) % 128
    return F.linear(x[:, :cut], weight[:, :cut]) + F.linear(x[:, cut:], weight[:, cut:], bias)


def library_sums_by_height():
    x, weight = torch.randn(100, 256), torch.randn(512, 256)
    return not torch.equal(F.linear(x, weight)[:2], F.linear(x[:2], weight))


@pytest.mark.parametrize("product", [F.linear, by_height])
def test_without_blocks_of_one_height_the_bits_would_differ(make_order, monkeypatch, product):
    if product is F.linear and not library_sums_by_height():
        pytest.skip("this machine's products do not depend on their height")
    plain, native = (
        import_module(f"models.nn.kernels.{form}.project") for form in ("plain", "native")
    )
    monkeypatch.setattr(native, "takes", lambda *_: False)
    for place in (kernel, plain):
        monkeypatch.setattr(place, "multiply", product)
    alone = [run_together([make_order(**job)])[0] for job in JOBS[:2]]
    found = run_together([make_order(**job) for job in JOBS[:2]])
    hashes = [[weights_hash(said) for said in side] for side in (found, alone)]
    assert hashes[0] != hashes[1]


@pytest.mark.parametrize(
    ("code", "bad"),
    [
        (
            "non_finite_loss",
            {
                "method": {"type": "lora", "rank": 4},
                # Decay by ten times itself a step: the tensors grow without bound.
                "loop": {
                    "learning_rate": 10.0,
                    "weight_decay": 1.0,
                    "scheduler": "constant",
                    "warmup_ratio": 0.0,
                    "n_epochs": 50,
                },
            },
        ),
        ("invalid_training_file", {"rows": "{"}),
    ],
)
def test_a_failure_is_its_own_jobs(make_order, code, bad):
    orders = [make_order(**JOBS[0]), make_order(**bad), make_order(**JOBS[1])]
    first, failed, last = run_together(orders)
    assert failed[-1].code == code
    check_equal(first, run_together([make_order(**JOBS[0])])[0])
    check_equal(last, run_together([make_order(**JOBS[1])])[0])


def test_a_bug_in_one_job_is_its_own(make_order):
    broken = make_order(**JOBS[3])
    Path(broken.training_file).unlink()
    said, other = run_together([broken, make_order(**JOBS[0])])
    assert [type(message).__name__ for message in said] == ["Broke"]
    check_equal(other, run_together([make_order(**JOBS[0])])[0])


def test_one_is_paused_and_joins_again_while_the_others_go_on(make_order):
    orders = [make_order(**job) for job in JOBS[:3]]
    channels = [Recording(), Recording(), Recording(asks_after=4)]
    gang = Gang()
    for order, channel in zip(orders, channels, strict=True):
        gang.join(train(order, channel), channel)
    while len(gang.members) == 3:
        gang.beat()
    assert type(channels[2].messages[-1]).__name__ == "Stopped"
    again = Recording()
    gang.join(train(orders[2], again), again)
    while gang.members:
        gang.beat()
    alone = [run_together([make_order(**job)])[0] for job in JOBS[:3]]
    check_equal(channels[0].messages, alone[0])
    check_equal(channels[1].messages, alone[1])
    assert weights_hash(again.messages) == weights_hash(alone[2])
    assert values_of(channels[2].messages) | values_of(again.messages) == values_of(alone[2])


class Unwanted(Recording):
    """A channel of a job that is cancelled after some messages."""

    def check(self):
        if len(self.messages) >= 4:
            raise Dropped


def test_one_is_dropped_without_a_word_more(make_order):
    channels = [Unwanted(), Recording()]
    dropped, other = run_together([make_order(**job) for job in JOBS[:2]], channels)
    assert len(dropped) == 4
    check_equal(other, run_together([make_order(**JOBS[1])])[0])


def test_a_late_one_joins_between_steps(make_order, together):
    first, late = Recording(), Recording()
    gang = Gang()
    gang.join(train(make_order(**JOBS[0]), first), first)
    gang.beat()
    gang.beat()
    gang.join(train(make_order(**JOBS[3]), late), late)
    while gang.members:
        gang.beat()
    assert together[:2] == [1, 1]
    assert max(together) == 2
    check_equal(first.messages, run_together([make_order(**JOBS[0])])[0])
    check_equal(late.messages, run_together([make_order(**JOBS[3])])[0])


def test_what_failed_together_is_done_again_alone(make_order, monkeypatch):
    """Whoever is at fault fails then; the others lose a step's time, and no gradient twice."""
    score_together, lost = module.score_together, []

    def fail_third(shares):
        scores = score_together(shares)  # gradients are there already
        if len(shares) > 1:
            lost.append(len(shares))
            if len(lost) == 3:
                raise RuntimeError("no luck")
        return scores

    jobs = [{**JOBS[0], "loop": {"micro_batch_tokens": 60}}, JOBS[3]]
    alone = [run_together([make_order(**job)])[0] for job in jobs]
    monkeypatch.setattr(module, "score_together", fail_third)
    for said, expected in zip(
        run_together([make_order(**job) for job in jobs]), alone, strict=True
    ):
        check_equal(said, expected)
    assert len(lost) == 3


def test_turns_are_shared_by_tokens_and_not_by_jobs(make_order):
    sizes = [{"batch_size": 1}, {"batch_size": 4}, {"batch_size": 2, "max_tokens": 10**6}]
    channels = [Recording() for _ in sizes]
    gang = Gang()
    for size, channel in zip(sizes, channels, strict=True):
        order = make_order(rows=ROWS, loop={"n_epochs": 50, **size}, method={"type": "ia3"})
        gang.join(train(order, channel), channel)
    for _ in range(60):
        gang.beat()
    had = [tokens_of(channel) for channel in channels]
    assert len(gang.members) == 3
    assert min(had) > 2 * kernel.SHARED_ROWS
    assert max(had) - min(had) <= 2 * kernel.SHARED_ROWS
    for member in gang.members:
        member.work.close()


def test_a_newcomer_neither_catches_up_nor_waits(make_order):
    first, late = Recording(), Recording()
    gang = Gang()
    loop = {"n_epochs": 500}
    gang.join(train(make_order(loop=loop, method={"type": "ia3"}), first), first)
    for _ in range(30):
        gang.beat()
    before = tokens_of(first)
    gang.join(train(make_order(loop=loop, method={"type": "ia3"}), late), late)
    for _ in range(10):
        gang.beat()
    gained = tokens_of(first) - before
    assert gained > 0
    assert abs(tokens_of(late) - gained) <= kernel.SHARED_ROWS
    for member in gang.members:
        member.work.close()
