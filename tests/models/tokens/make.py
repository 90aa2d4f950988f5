"""Makes `vocabularies.json` and asks llama.cpp for the tokens of `TEXTS` under each of them: `llama_cpp.json`.

Needs llama-cpp-python (made with 0.3.36), gguf and tokenizers; no weights. From the project's root:

    python -m tests.models.tokens.make
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from tests.models.tokens.vocabularies import (
    BYTE,
    CONTROL,
    HERE,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    VARIANTS,
    kind_of,
    write,
)

PRE = [
    "default", "minicpm5", "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0",
    "lfm2", "jina-v5-nano", "deepseek-llm", "deepseek-coder", "deepseek-v3", "spark2_5", "youtu", "falcon",
    "mpt", "starcoder", "gpt-2", "phi-2", "jina-es", "jina-de", "gigachat", "jina-v2-es", "jina-v2-de",
    "a.x-4.0", "mellum", "modern-bert", "jais-2", "gemma4", "granite-embed-multi-311m", "sarvam-moe",
    "jina-v1-en", "jina-v2-code", "roberta-bpe", "refact", "command-r", "qwen2", "deepseek-r1-qwen", "kormo",
    "f2llmv2", "qwen35", "stablelm2", "olmo", "dbrx", "smaug-bpe", "poro-chat", "chatglm-bpe", "glm4", "glm5",
    "viking", "jais", "tekken", "smollm", "codeshell", "bloom", "gpt3-finnish", "exaone", "exaone4",
    "exaone-moe", "chameleon", "minerva-7b", "megrez", "gpt-4o", "llama4", "kanana2", "talkie",
    "granite-embed-multi-97m", "tiny_aya", "cohere2moe", "superbpe", "trillion", "granite-docling",
    "bailingmoe", "bailingmoe2", "llada-moe", "seed-coder", "hunyuan", "hunyuan-dense", "hy_v4", "joyai-llm",
    "kimi-k2", "ufakzeka", "grok-2", "afmoe", "laguna", "minimax-m2", "solar-open", "mellum2",
]  # fmt: skip
"""All that llama.cpp knows but `whitespace`, whose words are looked up whole."""

TEXTS = [
    "", " ", "  ", "\n", "\n\n", " \n", "\t", "a", " a", "  a", "a ", "a  ", "a\n", "\na",
    "Steps:\n\n1. Mix", "Steps:\n\nA. Mix", "Steps:\n1. Mix\n2. Stir", "x\n\n\n\ny",
    "a   b", "a\t\tb", "a \n b", "a\r\nb",
    "1", "12", "123", "1234", "1234567", "3.14159", "v1.2.3", "in 1999, 2 of 30", "10,000", "1 000", "a1b22c333",
    "it's", "IT'S", "we'll they've I'd", "don't", "'tis", "It’s",
    "Hello, world!", "hello... (world)?!", "a-b_c", "x==y; z+=1", "$5 <b> `code` ~", "#!/bin/sh", "http://a.b/c?d=e",
    "CamelCase", "HTTPServer", "snake_case", "naïve café", "ÉCOLE École", "Привет, мир",
    "你好，世界。", "日本語のテスト",
    "漢字かな12", "한국어 시험", "مرحبا ٣٤", "नमस्ते दुनिया", "ไทย", "👋", "👩‍👩‍👧 ok",
    "½ ² Ⅷ", "e\u0301", "\u00a0x", "x\u3000y",
    "<|im_start|>user\nHi<|im_end|>\n", "Hi<|im_end|> there", "!!! a!b",
    "<s> a</s> b<|im_end|>\n c", "<tool> <tool>x", "<|im_start|><|im_end|>", "<|im_sta",
    "aaaaa aaaaaaa", "=======", "a       b", "\n" * 7, "hahahahaha",
    "The quick brown fox, and the lazy dog. " * 2,
]  # fmt: skip

CORPUS = [
    *TEXTS,
    "Steps:\n\n1. Mix the flour.\n2. Stir it well.\n\nA. Mix\n\nB. Stir\n\n",
    "In 1999, 12 of 345 people and 6789 others paid 10,000. It's what we'll see; they've said I'd go, DON'T GO.\n",
    "The quick brown fox and the lazy dog. The cat sat on the mat, and the dog lay by the door.\n",
    "aaaaaaaa hahahaha ======== -------- ........          a     b\n\n\n\n\n" * 3,
    "    for i in range(10):\n        print(i, x == y)\n\n\n    return x\n",
    "你好，世界。你好，世界！日本語のテスト。한국어 시험. Привет, мир! naïve café",
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_level() -> dict[str, Any]:
    """Trained on text that nothing has cut, so that a token crosses every border that a pre-tokenizer may draw."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1100, special_tokens=SPECIAL, initial_alphabet=alphabet, max_token_length=9, show_progress=False
    )
    made.train_from_iterator(CORPUS * 2, trainer)
    model = json.loads(made.to_str())["model"]
    tokens = [*sorted(model["vocab"], key=model["vocab"].get), "<tool>"]
    kinds = [CONTROL] * len(SPECIAL) + [NORMAL] * (len(tokens) - len(SPECIAL) - 1) + [USER_DEFINED]
    merges = [" ".join(m) if isinstance(m, list) else m for m in model["merges"]]
    return {
        "tokens": tokens,
        "kinds": kinds,
        "merges": merges,
        "special": {"bos": "<|im_start|>", "eos": "<|im_end|>"},
    }


def pieces(unigram: bool) -> tuple[list[str], list[float]]:
    """Pieces with ▁ for spaces, as SentencePiece has them, and their scores."""
    from tokenizers import Tokenizer, models, normalizers, trainers

    texts = [" " + t for t in CORPUS * 2]
    made = Tokenizer(models.Unigram() if unigram else models.BPE())
    made.normalizer = normalizers.Replace(" ", "\u2581")
    kind: Any = trainers.UnigramTrainer if unigram else trainers.BpeTrainer
    more = (
        {"unk_token": "<unk>", "special_tokens": ["<unk>"], "max_piece_length": 9}
        if unigram
        else {"max_token_length": 9}
    )
    made.train_from_iterator(texts, kind(vocab_size=700, show_progress=False, **more))
    model = json.loads(made.to_str())["model"]
    if unigram:
        rows = [(p, s) for p, s in model["vocab"] if p != "<unk>"]
        return [p for p, _ in rows], [round(s, 4) for _, s in rows]
    ordered = sorted(model["vocab"], key=model["vocab"].get)
    return ordered, [-float(i) for i in range(len(ordered))]


def sentencepiece(raw: bool = False) -> dict[str, Any]:
    """Llama's layout: unknown, beginning, end, 256 bytes, then pieces. `raw`: with merges instead of scores."""
    found, scores = pieces(unigram=False)
    plain = [all(ord(c) < 0x600 or c == "\u2581" for c in p) for p in found]  # the rest comes as bytes
    kept = [(p, s) for p, s, k in zip(found, scores, plain, strict=True) if k]
    have = {p for p, _ in kept}
    first = ["<unk>", "<s>", "</s>", *SPECIAL, "<tool>", "<unused0>"]
    tokens = [*first, *(f"<0x{b:02X}>" for b in range(256)), *(p for p, _ in kept)]
    kinds = [UNKNOWN, *[CONTROL] * 5, USER_DEFINED, UNUSED, *[BYTE] * 256, *[NORMAL] * len(kept)]
    value: dict[str, Any] = {"tokens": tokens, "kinds": kinds}
    value["special"] = {"bos": "<s>", "eos": "</s>", "unknown": "<unk>"}
    if raw:
        splits = [(p[:n], p[n:]) for p, _ in kept for n in range(1, len(p))]
        value["merges"] = [f"{a} {b}" for a, b in splits if {a, b} <= have and "\n" not in a + b]
    else:
        value["scores"] = [0.0] * (len(first) + 256) + [s for _, s in kept]
    return value


def unigram() -> dict[str, Any]:
    found, scores = pieces(unigram=True)
    first = ["<pad>", "</s>", "<unk>", *SPECIAL[1:], "<tool>"]
    kinds = [CONTROL, CONTROL, UNKNOWN, CONTROL, CONTROL, USER_DEFINED]
    return {
        "tokens": [*first, *found],
        "kinds": [*kinds, *[NORMAL] * len(found)],
        "scores": [*[0.0] * len(first), *scores],
        "special": {"eos": "</s>", "unknown": "<unk>", "padding": "<pad>"},
    }


def wordpiece() -> dict[str, Any]:
    """GGUF's form of BERT's words: what begins a word has ▁, what is inside one has no ##."""
    words = "steps mix stir hello world the quick brown fox and lazy dog it s we ll they ve i d don t école ecole naive"
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,:;!?()'-_=+$<>`~#/éïпривет你好世界日本語"
    inside = ["ing", "er", "ps", "llo", "12", "99", "ase"]
    first = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<|im_start|>", "<|im_end|>", "<tool>"]
    begin = [f"\u2581{w}" for w in dict.fromkeys([*words.split(), *letters, "Hello", "H", "T", "The"])]
    tokens = [*first, *begin, *dict.fromkeys([*letters, *inside])]
    kinds = [CONTROL, UNKNOWN, *[CONTROL] * 4, USER_DEFINED, *[NORMAL] * (len(tokens) - len(first))]
    special = {"bos": "[CLS]", "cls": "[CLS]", "seperator": "[SEP]", "unknown": "[UNK]", "padding": "[PAD]"}
    return {"tokens": tokens, "kinds": kinds, "special": special}


def ask(path: Path) -> list[list[int]]:
    """llama.cpp's tokens of every text, with what belongs around it and with special tokens found in it."""
    import llama_cpp

    model = llama_cpp.Llama(model_path=str(path), vocab_only=True, verbose=False)
    return [model.tokenize(t.encode(), add_bos=True, special=True) for t in TEXTS]


def main() -> None:
    kinds = {"gpt2": byte_level(), "llama": sentencepiece(), "raw": sentencepiece(raw=True)}
    kinds |= {"t5": unigram(), "bert": wordpiece()}
    (HERE / "vocabularies.json").write_text(json.dumps(kinds, ensure_ascii=True) + "\n", encoding="utf-8")
    answers: list[list[list[int]]] = []
    of: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in [*PRE, *VARIANTS]:
            path = Path(folder) / f"{name}.gguf"
            write(path, kind_of(name), **VARIANTS.get(name, {"pre": name}))
            found = ask(path)
            if found not in answers:
                answers.append(found)
            of[name] = answers.index(found)
    value = {"texts": TEXTS, "answers": answers, "of": of}
    (HERE / "llama_cpp.json").write_text(json.dumps(value, separators=(",", ":")) + "\n", encoding="utf-8")
    print(len(of), "vocabularies,", len(answers), "different answers")


if __name__ == "__main__":
    main()
