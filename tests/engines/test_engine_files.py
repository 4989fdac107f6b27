"""States that an independent writer of the documented formats made of the embedded model: the maps are `explain`'s."""

import fcntl
import json
import struct
import threading
import time
from functools import cache

import numpy as np
import pytest
import torch

from tam_fast.demo import ASSETS, load_demo, sample_scenes
from tam_fast.engines import Classifier, sglang, vllm
from tam_fast.explain import Explainer, explain_states
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.inputs import load_images, prepare_inputs


@cache
def recorded():
    """One answer of the embedded model: ids, layout, states before and after the final norm, the explanation."""
    model, processor = load_demo()
    image = load_images(sample_scenes()[0])[0]
    e = Explainer(model, processor).explain(image, "Describe this image.")
    prompt = prepare_inputs(model, processor, [image], "Describe this image.")
    ids = torch.cat([prompt.input_ids, torch.tensor(e.token_ids)])
    inputs = {**prompt.inputs, "input_ids": ids[None, :-1], "attention_mask": torch.ones(1, ids.numel() - 1).long()}
    more = ids.numel() - 1 - prompt.inputs["mm_token_type_ids"].shape[1]
    inputs["mm_token_type_ids"] = torch.nn.functional.pad(prompt.inputs["mm_token_type_ids"], (0, more))
    seen = {}
    norm = model.model.language_model.norm
    handle = norm.register_forward_hook(lambda _m, args, out: seen.update(before=args[0][0], after=out[0]))
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    return ids, prompt.layout, seen["before"].detach(), seen["after"].detach(), e, image


def write_safetensors(path, arrays):
    """The format, from its description: a length, a JSON of places, the bytes."""
    head, body = {}, b""
    for name, array in arrays.items():
        kind = {"float32": "F32", "float16": "F16", "int64": "I64"}[array.dtype.name]
        head[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [len(body), len(body) + array.nbytes]}
        body += np.ascontiguousarray(array).tobytes()
    text = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def write_vllm(path, states, ids, layers=1, lock=True):
    """As the connector does: (tokens, layers, C), ids without the last; other layers hold noise."""
    noise = np.random.default_rng(0).normal(size=(len(states), layers, states.shape[1])).astype(np.float32)
    noise[:, -1] = states.numpy()
    if lock:
        path.with_name(path.name + ".lock").touch()
    write_safetensors(path, {"hidden_states": noise, "token_ids": ids.numpy()})


def response(rows, prompt_length, **meta):
    parts = [rows[:prompt_length].tolist(), *(row.tolist() for row in rows[prompt_length:])]
    return {"text": "...", "meta_info": {"hidden_states": parts, "cached_tokens": 0, **meta}}


def same_maps(e, expected):
    assert e.token_ids == expected.token_ids
    assert e.text == expected.text
    assert float((e.maps.maps - expected.maps.maps).abs().max()) < 1e-5
    assert float((e.relevance - expected.relevance).abs().max()) < 1e-5


# vLLM ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers, lock", [(1, True), (3, False)])
def test_vllms_files_give_the_maps_of_explain(tmp_path, layers, lock):
    ids, layout, before, _, e, image = recorded()
    path = tmp_path / "request.safetensors"
    write_vllm(path, before, ids[:-1], layers, lock)
    states = vllm.read(path, ids, lock=lock)
    assert (states.normed, len(states), states.token_ids.tolist()) == (False, len(ids) - 1, ids[:-1].tolist())
    model, processor = load_demo()
    norm = model.model.language_model.norm
    weight = model.get_output_embeddings().weight.detach()
    made = explain_states(states.hidden, weight, ids, layout, norm=norm, tokenizer=processor.tokenizer, images=image)
    same_maps(made, e)


def test_short_and_foreign_files_are_refused_with_the_setting_at_fault(tmp_path):
    ids, layout, before, *_ = recorded()
    path = tmp_path / "request.safetensors"
    count = len(ids) - 1

    def refused(states, some, match):
        write_vllm(path, states, some)
        with pytest.raises(ValueError, match=match):
            vllm.read(path, ids)

    prompt = layout.answer_start
    refused(before[:prompt], ids[:prompt], rf"expected {count} rows, got the first {prompt}.*include_output_tokens")
    refused(before[5:], ids[5:-1], rf"expected {count} rows, got the last {count - 5}: .*--no-enable-prefix-caching")
    other = ids[:-1].clone()
    other[7] += 1
    refused(before, other, rf"expected token id {int(ids[7])} at position 7, got {int(other[7])}: another request's")
    longer = torch.cat([ids[:-1], ids[:2]])
    refused(torch.cat([before, before[:2]]), longer, f"expected the {count} ids")
    bad = before.clone()
    bad[3, 1] = float("nan")
    refused(bad, ids[:-1], "expected finite hidden states, got NaN or an infinity in row 3")


def test_files_that_are_none(tmp_path):
    ids, _, before, *_ = recorded()
    path = tmp_path / "request.safetensors"
    write_vllm(path, before, ids[:-1])
    whole = path.read_bytes()
    for data in (b"", whole[:7], whole[: len(whole) // 2], b"x" * 100):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="expected a whole safetensors file"):
            vllm.read(path, ids)
    write_safetensors(path, {"hidden_states": before.numpy()})
    with pytest.raises(ValueError, match="expected an array 'token_ids'"):
        vllm.read(path, ids)
    write_safetensors(path, {"hidden_states": before.numpy(), "token_ids": ids[:-1].numpy()})
    with pytest.raises(ValueError, match=r"expected hidden_states \(tokens, layers, C\)"):
        vllm.read(path, ids)
    write_vllm(path, before, ids[:-1])
    with pytest.raises(ValueError, match="layer: expected one of the 1"):
        vllm.read(path, ids, layer=1)
    for wrong in ([1.5, 2.0], [3], [[1, 2]]):
        with pytest.raises(ValueError, match="token_ids: expected"):
            vllm.read(path, wrong)


def test_the_writers_lock_is_waited_for(tmp_path):
    ids, _, before, *_ = recorded()
    path = tmp_path / "request.safetensors"
    with pytest.raises(FileNotFoundError, match="use_synchronization_lock"):
        vllm.read(path, ids, timeout=0.05)
    with pytest.raises(FileNotFoundError, match="expected hidden states"):
        vllm.read(path, ids, timeout=0.05, lock=False)
    lock = path.with_name(path.name + ".lock")
    lock.touch()
    with lock.open("rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        path.write_bytes(b"half")
        with pytest.raises(TimeoutError, match="still holds it"):
            vllm.read(path, ids, timeout=0.05)

        def finish():
            time.sleep(0.2)
            write_vllm(path, before, ids[:-1])
            fcntl.flock(writer, fcntl.LOCK_UN)

        thread = threading.Thread(target=finish)
        thread.start()
        assert len(vllm.read(path, ids, timeout=20)) == len(ids) - 1
        thread.join()


# SGLang ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [True, False])
def test_sglangs_responses_give_the_maps_of_explain(last):
    ids, layout, _, after, e, image = recorded()
    rows = torch.cat([after, after[-1:] * 2]) if last else after
    start = layout.answer_start
    made = json.loads(json.dumps(response(rows, start)))
    states = sglang.read(made, ids, prompt_length=start)
    assert (states.normed, len(states)) == (True, len(ids) - 1)
    model, processor = load_demo()
    weight = model.get_output_embeddings().weight.detach()
    same_maps(explain_states(states.hidden, weight, ids, layout, tokenizer=processor.tokenizer, images=image), e)


def test_short_and_foreign_responses_are_refused_with_the_setting_at_fault():
    ids, layout, _, after, *_ = recorded()
    start = layout.answer_start
    settings = "--disable-radix-cache --chunked-prefill-size -1"
    cases = [
        (response(after[4:], start - 4), f"expected {start} rows of the prompt, got {start - 4}, fewer.*{settings}"),
        (response(torch.cat([after[:1], after]), start + 1), f"got {start + 1}, more: another request's; .*{settings}"),
        (response(after, start, cached_tokens=16), f"expected no cached tokens, got 16.*{settings}"),
        (response(after[:-2], start), "expected .* rows of the answer"),
        ({**response(after, start), "output_ids": [1]}, "another request's"),
        ({"meta_info": {}}, "--enable-return-hidden-states"),
        ({"meta_info": {"hidden_states": [["x"]]}}, "expected lists of numbers"),
        ({"meta_info": {"hidden_states": [[[0.5, 1.0], [1.0]]]}}, "expected lists of numbers"),
        (response(torch.full_like(after, float("inf")), start), "expected finite hidden states"),
    ]
    for made, match in cases:
        with pytest.raises(ValueError, match=match):
            sglang.read(made, ids, prompt_length=start)
    with pytest.raises(TypeError, match="response: expected a mapping"):
        sglang.read([], ids, prompt_length=start)
    for length in (0, len(ids), True):
        with pytest.raises(ValueError, match="prompt_length: expected"):
            sglang.read(response(after, start), ids, prompt_length=length)


# A folder's lm_head and norm -------------------------------------------------------------------------


def test_the_head_and_norm_of_a_folder_without_its_model(monkeypatch):
    ids, layout, before, _, e, image = recorded()
    model, processor = load_demo()
    found = Classifier.from_folder(ASSETS)
    assert torch.equal(found.weight.float(), model.get_output_embeddings().weight)
    assert found.bias is None
    norm = found.norm.float()
    made = explain_states(
        before, found.weight.float(), ids, layout, norm=norm, tokenizer=processor.tokenizer, images=image
    )
    same_maps(made, e)


@pytest.mark.parametrize("family", ["qwen2_vl", "llava", "gemma3", "internvl"])
def test_heads_and_norms_of_families(tmp_path, family):
    from families import build

    from tam_fast.models.capture import decoder_of

    model = build(family).model
    with torch.no_grad():
        decoder_of(model).norm.weight.add_(torch.rand_like(decoder_of(model).norm.weight))
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    found = Classifier.from_folder(tmp_path)
    assert torch.equal(found.weight, model.get_output_embeddings().weight)
    rows = torch.randn(5, found.weight.shape[1], dtype=found.weight.dtype)
    with torch.no_grad():
        assert torch.equal(found.norm(rows), decoder_of(model).norm(rows))


def test_folders_without_what_is_needed(tmp_path):
    with pytest.raises((ValueError, FileNotFoundError)):
        Classifier.from_folder(tmp_path)
    from families import build

    model = build("qwen2_vl").model
    model.save_pretrained(tmp_path)
    from safetensors.torch import load_file, save_file

    tensors = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith("model.norm.weight")}
    assert len(kept) < len(tensors)
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"folder: expected a tensor .*norm\.weight"):
        Classifier.from_folder(tmp_path)
    assert issubclass(ModelNotSupportedError, ValueError)
