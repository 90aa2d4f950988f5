"""How each kind of byte-level BPE cuts text before its merges, by the name in GGUF files' `tokenizer.ggml.pre`.

The names are those of llama.cpp (src/llama-vocab.cpp, `tokenizer_pre`), the patterns those of the models' own
`tokenizer.json`. Where llama.cpp's engine has no \\p{Lu} or \\p{M} and cuts a little otherwise, the model's own pattern
is here, for the model was trained on it. Patterns are Oniguruma's; each cuts the pieces that the one before it left.
"""

from __future__ import annotations

from dataclasses import dataclass

END = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
WORD = r"[^\r\n\p{L}\p{N}]?"
SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
LLAMA3 = rf"{END}|{WORD}\p{{L}}+|\p{{N}}{{1,3}}|{SIGNS}|{SPACES}"
QWEN2 = rf"{END}|{WORD}\p{{L}}+|\p{{N}}|{SIGNS}|{SPACES}"
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"


def _cased(end: str, digits: str, not_in: str = "", slash: str = "/") -> str:
    """The pattern of o200k and its kin: words break where small letters meet capitals."""
    upper, lower = f"[{UPPER}{not_in}]", f"[{LOWER}{not_in}]"
    words = f"{WORD}{upper}*{lower}+{end}|{WORD}{upper}+{lower}*{end}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n{slash}]*|{SPACES}"


O200K = _cased(f"{END}?", r"\p{N}{1,3}")
CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
CJK_WIDE = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
ASCII_SIGN = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
DEEPSEEK_WORDS = ASCII_SIGN + r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+"
DEEPSEEK3 = (r"\p{N}{1,3}", CJK, DEEPSEEK_WORDS + rf"[\r\n]*|{SPACES}")
BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
LINES = r"[^\n]+|\n+"
# Letters that have cases, as DeepSeek's first tokenizer lists them.
CASED_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376"
    "\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-"
    "\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a"
    "\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4"
    "\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
    "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f"
    "\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"
    "\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
)
YOUTU_SCRIPTS = (
    "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f"
    "\ufe30-\ufe4f]+|[\u3105-\u312f]+|" + CJK
)
AFMOE_SCRIPTS = (
    "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f"
    "\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
)


@dataclass(frozen=True)
class PreTokenizer:
    """`patterns`: what to cut out, one after another. `whole_words`: a piece that is a token is not merged up to.
    `raw`: tokens are text with ▁ for a space, and bytes only where a character is unknown (as SentencePiece has it).
    `bos`: texts begin with the token of that name unless the file says otherwise."""

    patterns: tuple[str, ...]
    whole_words: bool = False
    raw: bool = False
    bos: bool = False


def _same(
    names: str, *patterns: str, whole_words: bool = False, raw: bool = False, bos: bool = False
) -> dict[str, PreTokenizer]:
    return dict.fromkeys(names.split(), PreTokenizer(patterns, whole_words, raw, bos))


PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    **_same("default", r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
    **_same(
        "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
        LLAMA3,
        whole_words=True,
        bos=True,
    ),
    **_same("dbrx smaug-bpe chatglm-bpe", LLAMA3),
    **_same("glm4 glm5", LLAMA3, whole_words=True),
    **_same(
        "jais-2",
        rf"{END}|{WORD}\p{{L}}+|\p{{N}}{{1,3}}|{SIGNS}|\s*[\r\n]+"
        r"|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)"
        r"|\s{1,2}(?!\S)|\s",
    ),
    **_same("minicpm5", r"\p{N}{1,3}", rf"{END}|{WORD}\p{{L}}+|\p{{N}}+|{SIGNS}|{SPACES}", whole_words=True),
    **_same(
        "deepseek-llm",
        r"[\r\n]",
        rf"\s?[{CASED_LETTERS}]+",
        "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
        r"\s+\z",
        CJK_WIDE,
        r"\p{N}+",
    ),
    **_same("deepseek-coder", r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK_WIDE, r"\p{N}"),
    **_same("deepseek-v3 hunyuan-dense joyai-llm hy_v4", *DEEPSEEK3),
    **_same("spark2_5", r"\p{N}{1,3}", CJK, DEEPSEEK_WORDS + r"|[\r\n]|\s+(?!\S)|\s+", r"\p{N}"),
    **_same("youtu", YOUTU_SCRIPTS, _cased(f"{END}?", r"\p{N}"), whole_words=True),
    **_same("falcon", r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"),
    **_same("starcoder refact command-r smollm codeshell exaone minerva-7b mellum2", r"\p{N}", GPT2),
    **_same(
        "gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert jina-v1-en jina-v2-code"
        " roberta-bpe exaone4 mpt olmo jais trillion granite-docling",
        GPT2,
    ),
    **_same("stablelm2 qwen2 deepseek-r1-qwen kormo f2llmv2 megrez hunyuan solar-open grok-2", QWEN2),
    **_same(
        "qwen35",
        rf"{END}|{WORD}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{SPACES}",
    ),
    **_same("ufakzeka", rf"{WORD}\p{{L}}+|\p{{N}}|{SIGNS}|{SPACES}"),
    **_same("laguna", LINES, QWEN2),
    **_same("poro-chat bloom gpt3-finnish", BLOOM),
    **_same("viking", BLOOM, r"\p{N}"),
    **_same("tekken", _cased("", r"\p{N}"), whole_words=True, bos=True),
    **_same(
        "chameleon",
        "<sentinel:[0-9]+>",
        "IMGIMG[A-I]{1,4}Z",
        r"[\t\n]|    |  ",
        r"\p{N}",
        r"[\p{P}!-/:-@\[-`{-~]",
        GPT2,
        bos=True,
    ),
    **_same("gpt-4o llama4 kanana2 talkie minimax-m2", O200K),
    **_same("granite-embed-multi-97m", O200K, whole_words=True),
    **_same("tiny_aya cohere2moe", r"\d{1,3}(?=(?:\d{3})*\b)", O200K),
    **_same("kimi-k2", r"\p{Han}+|" + _cased(f"{END}?", r"\p{N}{1,3}", r"&&[^\p{Han}]", slash="")),
    **_same("superbpe", r"\p{N}+", r"(?=(\d{3})+(?!\d))"),
    **_same(
        "bailingmoe bailingmoe2 llada-moe",
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]"
        r"|\s+(?!\S)|\s+",
    ),
    **_same("seed-coder", rf"{END}|{WORD}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{SPACES}"),
    **_same(
        "exaone-moe",
        rf"{END}|{WORD}(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|\s*[\r\n]"
        r"|\s+(?!\S)|\s+",
    ),
    **_same(
        "afmoe",
        r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",
        AFMOE_SCRIPTS,
        DEEPSEEK_WORDS + rf"[\r\n]*|{SPACES}",
    ),
    **_same("gemma4 granite-embed-multi-311m", LINES, raw=True, bos=True),
    **_same("sarvam-moe", LINES, raw=True),
}
