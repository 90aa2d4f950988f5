"""The tokenizer inside a GGUF file, built with the tokenizers library from the file's own metadata.

transformers converts these too, but passes over `tokenizer.ggml.pre`, so that models whose text is cut otherwise than
GPT-2's get other tokens than they were trained on. What llama.cpp reads (src/llama-vocab.cpp) is read here, or refused.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from llmlab.errors import Refused
from llmlab.models.loading.gguf.header import read_metadata
from llmlab.models.loading.gguf.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from llmlab.models.loading.tokens.end_texts import ENDS, FILLING_ENDS, MARKS, NOT_BESIDE, SHOWN

UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 2, 3, 4, 5, 6
"""Kinds in `tokenizer.ggml.token_type`; 1 is an ordinary piece."""
SPACE = "\u2581"
ROLES = {
    "bos": "bos",
    "eos": "eos",
    "unknown": "unk",
    "padding": "pad",
    "seperator": "sep",
    "cls": "cls",
    "mask": "mask",
}
"""GGUF's names of special tokens (the spelling is the format's) and transformers'."""
ENDING = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
"""GGUF's names of tokens at which llama.cpp ends an answer."""
ELSEWHERE = "Choose the same model as safetensors"


class GgufVocab:
    """What a GGUF file says of its tokens. Raises Refused for a file that has no vocabulary, or a damaged one."""

    def __init__(self, path: Path) -> None:
        self.who = f"The file {path.name}"
        try:
            self.data = read_metadata(path)
        except (OSError, ValueError, struct.error) as e:
            raise Refused(self.who, "is damaged or cut short", "Fetch the file again or choose another") from e
        self.model = str(self.get("model", "none"))
        tokens = self.get("tokens", [])
        if not isinstance(tokens, list) or not tokens:
            raise Refused(self.who, "holds no vocabulary", ELSEWHERE)
        self.tokens = [str(t) or f"[EMPTY_{i}]" for i, t in enumerate(tokens)]
        kinds = self.get("token_type", [])
        self.kinds = [*kinds, *[1] * (len(tokens) - len(kinds))][: len(tokens)]
        self._correct_kinds()
        if len(set(self.tokens)) != len(self.tokens):
            raise Refused(self.who, "names two tokens alike", ELSEWHERE)

    def _correct_kinds(self) -> None:
        """Converters have called ends of turns ordinary pieces; as such a chat template could not set them."""
        have = set(self.tokens)
        ends = {n for n, beside in NOT_BESIDE if any(others <= have for others in beside)}
        control, shown = {*ENDS, *FILLING_ENDS, *MARKS} - ends, {*SHOWN}
        for i, token in enumerate(self.tokens):
            if token in shown:
                self.kinds[i] = USER_DEFINED
            elif token in control and self.kinds[i] != UNKNOWN:
                self.kinds[i] = CONTROL

    def get(self, name: str, default: Any = None) -> Any:
        return self.data.get(f"tokenizer.ggml.{name}", default)

    def flag(self, name: str, default: bool) -> bool:
        return bool(self.get(name, default))

    def special(self, name: str) -> int | None:
        """The id of a special token ("bos", "eot", …), None where the file names none that it has."""
        found = self.get(f"{name}_token_id")
        return int(found) if found is not None and 0 <= int(found) < len(self.tokens) else None

    def scores(self) -> list[float]:
        scores = self.get("scores", [])
        if len(scores) < len(self.tokens):
            raise Refused(self.who, "gives no scores for its tokens", ELSEWHERE)
        return [float(s) for s in scores]

    def merges(self) -> list[tuple[str, str]]:
        """Pairs in the order of their ranks; the first character may itself be a space."""
        lines = self.get("merges")
        if not isinstance(lines, list):
            raise Refused(self.who, "holds no merges for its tokens", ELSEWHERE)
        known, pairs = set(self.tokens), []
        for line in map(str, lines):
            cut = line.find(" ", 1)
            if cut > 0 and {line[:cut], line[cut + 1 :], line[:cut] + line[cut + 1 :]} <= known:
                pairs.append((line[:cut], line[cut + 1 :]))
        return pairs


def gguf_tokenizer(path: Path) -> Any:
    """A GGUF file's tokenizer as transformers' fast one. Raises Refused for kinds that are not known here."""
    from transformers import PreTrainedTokenizerFast

    vocab = GgufVocab(path)
    made = _backend(vocab)
    _add_special(made, vocab)
    # transformers looks for these in every text: where a file calls "!" its padding, "!" must stay a piece of text.
    named = {ROLES[n]: i for n in ROLES if (i := vocab.special(n)) is not None and _is_mark(vocab, i)}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made,
        clean_up_tokenization_spaces=False,
        end_token_ids=[i for n in ENDING if (i := vocab.special(n)) is not None],
        **{f"{role}_token": vocab.tokens[i] for role, i in named.items()},
    )
    fast.chat_template = _templates(vocab)
    return fast


def _is_mark(vocab: GgufVocab, i: int) -> bool:
    token = vocab.tokens[i]
    return vocab.kinds[i] in (CONTROL, UNKNOWN, USER_DEFINED) or (len(token) > 2 and token[0] in "<[")


def _backend(vocab: GgufVocab) -> Any:
    if vocab.model == "gpt2" or vocab.model == "gemma4":
        name = str(vocab.get("pre") or "default") if vocab.model == "gpt2" else "gemma4"
        if name not in PRE_TOKENIZERS:
            raise Refused(vocab.who, f"cuts its text by the rule {name[:30]!r}, which is unknown here", ELSEWHERE)
        cut = PRE_TOKENIZERS[name]
        return _finish(_raw_bpe(vocab, cut) if cut.raw else _byte_bpe(vocab, cut), vocab, bos=cut.bos)
    makers = {"llama": (_sentencepiece, True, False), "t5": (_unigram, False, True), "bert": (_wordpiece, True, False)}
    if vocab.model not in makers:
        raise Refused(vocab.who, f"has a tokenizer of the kind {vocab.model[:30]!r}, which is unknown here", ELSEWHERE)
    make, bos, eos = makers[vocab.model]
    return _finish(make(vocab), vocab, bos, eos)


def _byte_bpe(vocab: GgufVocab, cut: PreTokenizer) -> Any:
    """Bytes as characters, as GPT-2 has them."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    ids = {t: i for i, t in enumerate(vocab.tokens)}
    made = Tokenizer(models.BPE(ids, vocab.merges(), ignore_merges=cut.whole_words))
    splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in cut.patterns]
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    return made


def _raw_bpe(vocab: GgufVocab, cut: PreTokenizer) -> Any:
    """Text with ▁ for spaces; characters that no token has as bytes (<0x0A>)."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pairs, ids = vocab.merges(), {t: i for i, t in enumerate(vocab.tokens)}
    if cut.bos:  # Gemma's: a run of line ends that is a token is that token, also where the file has no merges for it
        have = {a + b for a, b in pairs}
        for size in sorted(len(t) for t in ids if not t.strip("\n") and t not in have):
            splits = [("\n" * i, "\n" * (size - i)) for i in range(1, size)]
            pairs += [(a, b) for a, b in splits if a in ids and b in ids]
    made = Tokenizer(models.BPE(ids, pairs, unk_token=_unknown(vocab), fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Replace(" ", SPACE)
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(p), "isolated") for p in cut.patterns])
    made.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return made


def _sentencepiece(vocab: GgufVocab) -> Any:
    """SentencePiece's BPE: pieces have scores instead of merges, so every way to put a piece together is a merge.

    A text, and what follows a special token, begins with a space, also where it has one of its own already.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores, ids = vocab.scores(), {t: i for i, t in enumerate(vocab.tokens)}
    found = []
    for piece, i in ids.items():
        if vocab.kinds[i] in (UNKNOWN, CONTROL, BYTE):
            continue
        splits = [(piece[:n], piece[n:]) for n in range(1, len(piece))]
        known = [(a, b) for a, b in splits if a in ids and b in ids]
        # Among the ways to one piece, the longer left part first: of equal scores SentencePiece takes the leftmost.
        found += [(-scores[i], i, -len(a), a, b) for a, b in known]
    pairs = [(a, b) for *_, a, b in sorted(found)]
    prefix = vocab.flag("add_space_prefix", True)
    made = Tokenizer(models.BPE(ids, pairs, unk_token=_unknown(vocab), fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", SPACE)
    made.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefix else spaces
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return made


def _unigram(vocab: GgufVocab) -> Any:
    """SentencePiece's unigram model, as T5 has it."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    scores = vocab.scores()
    # A user-defined piece wins over whatever else covers it: its score is the best there is.
    pieces = [(t, 0.0 if k == USER_DEFINED else s) for t, s, k in zip(vocab.tokens, scores, vocab.kinds, strict=False)]
    unknown = vocab.special("unknown")
    made = Tokenizer(models.Unigram(pieces, 2 if unknown is None else unknown, byte_fallback=BYTE in vocab.kinds))
    steps: list[Any] = []
    charsmap = vocab.get("precompiled_charsmap")
    if charsmap:
        steps.append(normalizers.Precompiled(bytes(c & 255 for c in charsmap)))
    if vocab.flag("remove_extra_whitespaces", False):
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if steps:
        made.normalizer = normalizers.Sequence(steps)
    scheme = "always" if vocab.flag("add_space_prefix", True) else "never"
    made.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, scheme, split=False)
    last: Any = decoders.Metaspace(SPACE, scheme)
    made.decoder = decoders.Sequence([decoders.ByteFallback(), last]) if BYTE in vocab.kinds else last
    return made


def _wordpiece(vocab: GgufVocab) -> Any:
    """BERT's words: GGUF marks the beginning of a word, where BERT's own files mark what is inside one."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    def own(i: int, token: str) -> str:
        if vocab.kinds[i] in (UNKNOWN, CONTROL, USER_DEFINED):
            return token
        return token[1:] if token.startswith(SPACE) else f"##{token}"

    vocab.tokens = [own(i, t) for i, t in enumerate(vocab.tokens)]
    unknown = vocab.special("unknown")
    unk = vocab.tokens[100 if unknown is None else unknown]
    ids = {t: i for i, t in enumerate(vocab.tokens)}
    made = Tokenizer(models.WordPiece(ids, unk_token=unk, max_input_chars_per_word=1_000_000))
    lower = vocab.flag("normalizer.lowercase", True)
    accents = vocab.flag("normalizer.strip_accents", lower)
    made.normalizer = normalizers.BertNormalizer(True, True, accents, lower)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(cleanup=False)
    return made


def _unknown(vocab: GgufVocab) -> str | None:
    unknown = vocab.special("unknown")
    if unknown is None and UNKNOWN in vocab.kinds:
        unknown = vocab.kinds.index(UNKNOWN)
    return None if unknown is None else vocab.tokens[unknown]


def _finish(made: Any, vocab: GgufVocab, bos: bool = False, eos: bool = False) -> Any:
    """What stands before and after every text."""
    from tokenizers import processors

    first = vocab.special("bos") if vocab.flag("add_bos_token", bos) else None
    last = vocab.special("eos") if vocab.flag("add_eos_token", eos) else None
    if vocab.model == "bert":
        first = vocab.special("bos") if vocab.special("bos") is not None else vocab.special("cls")
        last = vocab.special("seperator")
    around = [(vocab.tokens[i], i) for i in (first, last) if i is not None]
    if around:
        before, after = ([] if i is None else [vocab.tokens[i]] for i in (first, last))
        text = [*before, "$A", *after]
        made.post_processor = processors.TemplateProcessing(
            single=text, pair=[*text, "$B:1"], special_tokens=list(dict(around).items())
        )
    return made


def _add_special(made: Any, vocab: GgufVocab) -> None:
    """Tokens that are found in the text before it is cut: chat templates need <|im_start|> as one token."""
    from tokenizers import AddedToken

    # Phi-3's take the white space after them along, which only its name says.
    phi = any(n in str(vocab.data.get("general.name", "")).lower() for n in ("phi-3", "phi3"))
    plain = {"<unk>", "<s>", "<|endoftext|>"}
    for token, kind in zip(vocab.tokens, vocab.kinds, strict=False):
        if kind in (CONTROL, UNKNOWN):
            made.add_special_tokens(
                [AddedToken(token, normalized=False, special=True, rstrip=phi and token not in plain)]
            )
        elif kind == USER_DEFINED:
            made.add_tokens([AddedToken(token, normalized=False, rstrip=phi)])


def _templates(vocab: GgufVocab) -> Any:
    """The file's chat template, or, where it has several, all by name."""
    first, stem = vocab.data.get("tokenizer.chat_template"), "tokenizer.chat_template."
    named = {k.removeprefix(stem): v for k, v in vocab.data.items() if k.startswith(stem) and isinstance(v, str)}
    if first is not None and named:
        return {**named, "default": str(first)}
    return first if first is not None else named or None
