"""Texts that tell tokenizers, templates and models apart: what is compared when one is written."""

from __future__ import annotations

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "  two spaces before,\ttabs\t\tand  gaps   within ",
    "Lines\nand\n\nblank ones\r\nof either kind\n",
    "1234567890, 3.14159, -42, 0xFF, 10e-3, 2026-01-31",
    "It's we'll they've I'D don't O'Neill's",
    "def f(x: int) -> str:\n    return f\"{x!r}\"  # {'a': [1, 2]}",
    "Größe, naïve café, Ελληνικά, русский язык, עברית",
    "你好，世界！今天天气很好。こんにちは 안녕하세요",
    "🎭🌞 👩‍👩‍👧 e\u0301 ﬁ ½ ™ \u00a0 \u00ad",
    "camelCase snake_case SHOUTING!!! ... --- ***\n (yes?)\n",
    "",
)
"""Spaces, lines, digits, contractions, code, scripts, emoji, what a normalizer may change."""
PASSAGE = """\
The harbour lay still when the two of them came down the steps. Nobody had told the ferryman that
they would be late, and he had gone home with his lantern and his dog. "We could wait until the
morning," said the younger one, "or we could ask at the inn whether somebody has a boat." The older
one looked at the water for a long time. There were 14 boats, all of them tied to one another, and
not a light in any of them. "In the year that I was born," he said at last, "the sea froze from
here to the island, and people walked across with their cows. My mother carried me. She used to say
that the ice sang under her feet, and that she sang back to it, so that it would know her."
"""
"""Of no model's training: a model is as good at it before as after it was written."""
CONVERSATION = (
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "It is Paris.\n\nAsk me more!"},
    {"role": "user", "content": "  And of Italy?  "},
)
