"""Chat templates, end tokens and tokens without an embedding: what a stranger's files say is run, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmlab.errors import Refused
from llmlab.lab.experiment import Lab
from llmlab.lab.settings import Settings
from llmlab.models.loading.loaded import Loaded, prompt_tokens, require_known
from llmlab.models.loading.sources.found import Found
from llmlab.models.loading.tokens.chat import chat_text, turn_end
from llmlab.models.loading.tokens.end_texts import ENDS
from llmlab.models.loading.tokens.ends import stop_tokens
from llmlab.models.loading.tokens.tokenizers import read_tokenizer
from tests import made
from tests.models.tokens.vocabularies import write

PARTS = (
    "{% for m in messages %}<|{{ m.role }}|>{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}"
    "{% endif %}{% endfor %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PARTS_ONLY = PARTS.replace("{% for part in", "{{ m.content[0]['text'] | length }}{% for part in")
TRIMMED = "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}<|end|>{% endfor %}<|assistant|>"


def tokenizer(template: Any = made.CHAT, *more: str) -> Any:
    found = made.tokenizer()
    found.add_special_tokens({"additional_special_tokens": list(more)})
    found.chat_template = template
    return found


def loaded(template: Any, rows: int = 1000) -> Loaded:
    return Loaded("Tiny", SimpleNamespace(vocab=rows), tokenizer(template), "", frozenset(), "")


# Templates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('A system message is required') }}", "fails: A system message is required"),
        ("{% for m in messages %}{{ m.content }}", "fails: Unexpected end of template"),
        ("{{ messages[0].content }} {{ }", "fails: "),
        ("{% bogus %}", "fails: Encountered unknown tag 'bogus'"),
        ("{{ messages[0].content + name }}", "fails: 'name' is undefined"),
        ("{{ messages[0].content + messages[0].name }}", "fails: 'dict object' has no attribute 'name'"),
        ("{{ messages[0].content }}{{ tools | length + tools[0].name }}", "fails: "),
        ("{{ messages[0].content }}{{ 1 / 0 }}", "fails: division by zero"),
        ("{{ messages[0].content }}{{ ''.__class__.__mro__ }}", "fails: access to attribute"),
        ("{{ messages[5].content.strip() }}", "fails: "),
        ("{{ raise_exception('') }}", "fails: TemplateError"),
        ("{{ raise_exception('Two\nlines.') }}", "fails: Two lines. Switch"),
        ("Say something.", "leaves out the prompt"),
        ("{{ messages[0].content[:3] }}", "leaves out the prompt"),
        ("{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}", "leaves out the prompt"),
        ({"rag": "{{ 1 }}", "tool_use": "{{ 2 }}"}, "has the chat templates rag, tool_use"),
        ([{"name": "a", "template": "x"}, {"name": "b", "template": "y"}], "has the chat templates a, b"),
        ({"default": 3}, "is no text"),
    ],
)
@pytest.mark.parametrize("chat", [True, None])
def test_a_template_that_does_not_work_says_why(template: Any, says: str, chat: bool | None) -> None:
    with pytest.raises(Refused) as seen:
        prompt_tokens(loaded(template), "Hello there", chat)
    assert says in str(seen.value)
    assert "Tiny" in str(seen.value)
    assert str(seen.value).endswith("Switch chat off.")
    assert "\n" not in str(seen.value)
    assert prompt_tokens(loaded(template), "Hello there", False)


@pytest.mark.parametrize("template", [made.CHAT, PARTS, PARTS_ONLY, TRIMMED, {"default": made.CHAT, "rag": "{{ 1 }}"}])
@pytest.mark.parametrize("prompt", ["Hello there", "a", "<", "two\nlines ", "{{ 1 }} {% if %}"])
def test_the_prompt_is_in_the_text(template: Any, prompt: str) -> None:
    text = chat_text(tokenizer(template), "Tiny", prompt)
    assert f"{prompt.strip()}" in text
    assert text.startswith("<|user|>")
    assert text.rstrip().endswith("<|assistant|>")
    assert "'type'" not in text


def test_of_several_templates_the_default_one_is_taken(tmp_path: Path) -> None:
    named = {"rag": "{{ raise_exception('documents are missing') }}", "default": made.CHAT}
    for template in (named, [{"name": k, "template": v} for k, v in named.items()], {"only": made.CHAT}):
        assert prompt_tokens(loaded(template), "Hello") == prompt_tokens(loaded(made.CHAT), "Hello")
    for template in (named, {"tool_use": "{{ 1 }}", "default": made.CHAT}):
        folder = tmp_path / "+".join(template)
        tokenizer(template).save_pretrained(folder)
        assert chat_text(read_tokenizer(Found("a", "a", "folder", folder)), "Tiny", "Hi").startswith("<|user|>Hi")


@pytest.mark.parametrize("file", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
def test_templates_are_found_in_every_file_that_may_hold_one(tmp_path: Path, file: str) -> None:
    made.tokenizer(chat=False).save_pretrained(tmp_path)
    path = tmp_path / file
    held = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(made.CHAT if file.endswith("jinja") else json.dumps({**held, "chat_template": made.CHAT}))
    found = read_tokenizer(Found("a", "a", "folder", tmp_path))
    assert chat_text(found, "Tiny", "Hi") == "<|user|>Hi<|end|><|assistant|>"


def test_a_gguf_file_may_hold_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMLAB_CACHE", str(tmp_path / "cache"))
    named = {"tokenizer.chat_template": made.CHAT, "tokenizer.chat_template.rag": "{{ raise_exception('no') }}"}
    for held in (named, dict(list(named.items())[:1])):
        found = Found("a", "a", "gguf", write(tmp_path / f"{len(held)}.gguf", "gpt2", pre="smollm", **held))
        for _ in ("made", "kept"):
            assert chat_text(read_tokenizer(found), "Tiny", "Hi") == "<|user|>Hi<|end|><|assistant|>"


@pytest.mark.parametrize("prompt", ["\ud800", "a \udc80"])
def test_half_a_character_is_refused(prompt: str) -> None:
    with pytest.raises(Refused, match="halves of characters"):
        prompt_tokens(loaded(made.CHAT), prompt)


# Where answers end ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (made.CHAT, "<|end|>"),
        ("{% for m in messages %}[{{ m.role }}]{{ m.content }}<over>\n{% endfor %}", "<over>"),
        ("{% for m in messages %}[{{ m.role }}] {{ m.content }} {{ '<over>' }}{% endfor %}", "<over>"),
        ("{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}<over>{% endif %}{% endfor %}", "<over>"),
        (PARTS.replace("<|end|>", "<over>"), "<over>"),
        ("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}", "<|end|>"),
        ("{% for m in messages %}{{ m.content }}<over><|end|>{% endfor %}", "<over>"),
        ("{% for m in messages %}<over>{{ m.content }}{% endfor %}", None),
        ("{% for m in messages %}{{ m.content }}\n### {% endfor %}", None),
        ("{{ messages[0].content }}", None),
        ("{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}", None),
        ("{% bogus %}", None),
        (None, None),
    ],
)
def test_the_end_of_a_turn_is_read_from_the_template(template: Any, end: str | None) -> None:
    found = tokenizer(template, "<over>", "<ov")
    assert turn_end(found) == (None if end is None else found.convert_tokens_to_ids(end))
    if end:
        assert found.convert_tokens_to_ids(end) in stop_tokens(found, SimpleNamespace(eos_token_id=None))


@pytest.mark.parametrize("declared", [7, [7, 9], [9, 7]])
def test_ends_from_the_config_the_generation_config_and_the_tokenizer(tmp_path: Path, declared: Any) -> None:
    found = Found("a", "a", "folder", tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": declared}))
    want = {5, 6, 0, *(declared if isinstance(declared, list) else [declared])}
    assert stop_tokens(tokenizer(), SimpleNamespace(eos_token_id=[5, 6]), found) >= want
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": None, "temperature": 1}))
    assert stop_tokens(tokenizer(None), SimpleNamespace(), found) == {0}
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(Refused, match=r"generation_config.json"):
        stop_tokens(tokenizer(), SimpleNamespace(), found)


@pytest.mark.parametrize("name", ENDS)
def test_tokens_that_are_known_for_it(name: str) -> None:
    found = tokenizer(None, name)
    assert found.convert_tokens_to_ids(name) in stop_tokens(found, SimpleNamespace())
    assert stop_tokens(tokenizer(None, "<|other|>"), SimpleNamespace()) == {0}


@pytest.mark.parametrize("beside", [("<|return|>", "<|call|>"), ("<|calls|>", "<|flush|>")])
def test_the_end_of_a_part_of_an_answer_is_no_end(beside: tuple[str, str]) -> None:
    found = tokenizer(None, *beside)
    found.eos_token = beside[0]
    assert stop_tokens(found, SimpleNamespace()) == {found.convert_tokens_to_ids(t) for t in beside}


def test_ends_of_a_gguf_file(tmp_path: Path) -> None:
    """End of text, of a turn and of a message by number, and by the texts that llama.cpp knows."""
    path = write(tmp_path / "a.gguf", "gpt2", pre="smollm", eot_token_id=300, eom_token_id=301, fim_pad_token_id=302)
    found = Found("a", "a", "gguf", path)
    assert stop_tokens(read_tokenizer(found), SimpleNamespace(), found) == {300, 301, 302, 0, 2}


# Tokens without an embedding -----------------------------------------------------------------------------------


def test_a_token_beyond_the_embedding_is_named() -> None:
    found = tokenizer(made.CHAT, "<beyond>")
    number = found.convert_tokens_to_ids("<beyond>")
    held = Loaded("Tiny", SimpleNamespace(vocab=number), found, "", frozenset(), "")
    assert prompt_tokens(held, "Say it twice.")
    for chat in (True, False):
        with pytest.raises(Refused, match=f"no embedding for the token '<beyond>': its number is {number}"):
            prompt_tokens(held, "Say <beyond> twice.", chat)
    found.chat_template = made.CHAT.replace("<|assistant|>", "<beyond>")
    with pytest.raises(Refused, match="'<beyond>'"):
        prompt_tokens(held, "Say it twice.", True)
    require_known([0, number - 1], number, found, "Tiny")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_models_say_how_many_tokens_they_know(tmp_path: Path, kind: str) -> None:
    """On our decoder and on a wrapped model; the lab refuses before anything is computed."""
    folder = made.folder(tmp_path / kind, kind)
    found = made.tokenizer()
    count = len(found)
    found.add_tokens([f"<more{i}>" for i in range(made.VOCAB - count)] + ["<beyond>"])
    found.save_pretrained(folder)
    lab = Lab()
    settings = Settings(model=str(folder), prompt="a <more0>", max_new_tokens=2, weights="dense-fp32", chat=False)
    assert lab.prepare(settings).loaded.model.vocab == made.VOCAB
    with pytest.raises(Refused, match=f"'<beyond>': its number is {made.VOCAB} and there are {made.VOCAB}"):
        lab.prepare(Settings(model=str(folder), prompt="<beyond>", weights="dense-fp32", chat=False))


# Folders -------------------------------------------------------------------------------------------------------


def test_the_tokenizer_file_of_a_folder_is_taken_at_its_word(tmp_path: Path) -> None:
    """Also where transformers' class for the family would cut text by its own rules and lose a leading space."""
    from llmlab.models.loading.gguf.tokenizer import gguf_tokenizer

    original = gguf_tokenizer(write(tmp_path / "a.gguf", "llama"))
    original.save_pretrained(tmp_path)
    for name in ("LlamaTokenizer", "LlamaTokenizerFast", "GemmaTokenizer", "PreTrainedTokenizerFast", "Qwen2Tokenizer"):
        config = json.loads((tmp_path / "tokenizer_config.json").read_text())
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": name}))
        found = read_tokenizer(Found("a", "a", "folder", tmp_path))
        for text in ("a", " a", "  a b", "a\n b", "<|im_start|> a"):
            ids = original(text)["input_ids"]
            assert found(text)["input_ids"] == ids, (name, text)
            assert found.decode(ids) == original.decode(ids), (name, text)
        assert found.eos_token == "</s>"
