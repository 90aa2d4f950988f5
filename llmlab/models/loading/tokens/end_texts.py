"""Texts of tokens that mean something, whatever kind a file says that they are (src/llama-vocab.cpp of llama.cpp)."""

from __future__ import annotations

ENDS: tuple[str, ...] = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
)
"""Texts of tokens that llama.cpp takes for an end wherever they are in a vocabulary (src/llama-vocab.cpp)."""
FILLING_ENDS: tuple[str, ...] = ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]")
FILLING_ENDS += ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>")
"""And those of models that fill in code, which GGUF files do not always name."""
NOT_BESIDE = (
    ("<|end|>", ({"<|return|>", "<|call|>"}, {"<|call|>", "<|flush|>"}, {"<|calls|>", "<|flush|>"})),
    ("</s>", ({"<|tool_response>"}, {"<|plamo:eos|>"})),
)
"""A text that is no end where all tokens of one of the sets are there too: it ends a part of an answer, or nothing."""
MARKS: tuple[str, ...] = tuple(
    f"{a}{part}{b}"
    for parts, pairs in (
        (("fim_prefix", "fim_suffix", "fim_middle"), (("<|", "|>"), ("<", ">"))),
        (("fim-prefix", "fim-suffix", "fim-middle", "PRE", "SUF", "MID"), (("<", ">"),)),
        (("PRE", "SUF", "MID"), (("\u2581<", ">"),)),
        (("fim\u2581begin", "fim\u2581hole", "fim\u2581end"), (("<\uff5c", "\uff5c>"),)),
        (("code_prefix", "code_suffix", "code_middle", "prefix", "suffix", "middle"), (("<|", "|>"),)),
    )
    for part in parts
    for a, b in pairs
)
"""Around what a model is to fill in."""
SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")
"""gpt-oss's marks within an answer, which are part of its text."""
