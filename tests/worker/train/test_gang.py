"""Jobs that are trained together: each comes to what it comes to alone, to the bit."""

from importlib import import_module

import pytest
import torch
import torch.nn.functional as F

from core.bases import write_manifest
from models.nn import kernels
from models.nn.backbone import Backbone, pick_dtype
from models.nn.chat import Renderer
from models.nn.kernels import rows as kernel
from models.nn.kernels.native import library, takes
from models.spec import Broke
from tests.tiny import make_tiny_base
from tests.worker.train.conftest import ROWS, WIDE, Job, weights_hash
from tests.worker.train.gangs import JOBS, SHORT, check_equal, run_together
from worker.train import gang as module
from worker.train.run import load_backbone

DTYPES = ["auto", "float32"]
"""What a processor without products in bfloat16 trains in only if told to is not promised."""
IA3 = {"type": "ia3"}


@pytest.fixture
def heights(monkeypatch):
    """How many rows each stream had."""
    seen = []

    def spy(batches):
        seen.append(sum(batch.rows for batch in batches))
        return score_together(batches)

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


@pytest.mark.usefixtures("native", "three_threads")
@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Gemma"])
def test_a_job_is_the_same_whatever_a_thread_computes(tmp_path, together, family):
    base_folder = make_tiny_base(tmp_path / "base", family=family, **WIDE)
    jobs = [
        {
            "method": {"type": "lora", "rank": 4},
            "rows": [{"text": letter * length} for letter, length in zip("abc", own, strict=True)],
            "loop": {"batch_size": 3, "n_epochs": 6, "micro_batch_tokens": 512},
            "threads": 3,
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
    loop = {"batch_size": 10 * bound // kernel.OWN_ROWS, "micro_batch_tokens": 1024, "dtype": dtype}
    jobs = [{**job, "rows": ROWS, "loop": loop} for job in JOBS[:5]]  # few of them fill a stream
    alone = [run_together([make_order(**job)])[0] for job in jobs]
    heights.clear()
    found = run_together([make_order(**job) for job in jobs])
    for said, expected in zip(found, alone, strict=True):
        check_equal(said, expected)
    assert 0.75 * bound < max(heights) <= bound


def test_jobs_of_small_micro_batches_share_low_streams(make_order, heights):
    job = {"rows": ROWS, "loop": {"batch_size": 1, "micro_batch_tokens": 300, "dtype": "auto"}}
    run_together([make_order(**job) for _ in range(12)])
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


def test_a_base_that_was_replaced_is_not_trained_in_the_place_of_the_new_one(tmp_path):
    folder = make_tiny_base(tmp_path / "base")
    renderer_digest = Renderer.load(folder).digest

    def order(name):
        manifest = write_manifest(folder, id="tiny", shape={}, renderer_digest=renderer_digest)
        return Job(tmp_path / name, folder).order(provenance={"base_digest": manifest.digest})

    (before,) = run_together([order("before")])
    make_tiny_base(folder, seed=1)
    (joined,) = run_together([order("joined")])
    assert type(before[-1]).__name__ == "Succeeded"
    said = Broke(reason="Another base lies where the trainer had read one", alone=True)
    assert joined == [said]
    load_backbone.cache_clear()
    (after,) = run_together([order("after")])
    assert weights_hash(after) != weights_hash(before)
