"""Nothing in a saved conversation is read as Markdown, whoever wrote it."""

from pallava.serving.record import to_markdown
from pallava.serving.replies import Reply
from pallava.serving.session import Exchange

TEXTS = [
    "![x](http://evil/leak).png",
    "<img src=http://evil/?a> # h",
    "q\n\n**Answer:** forged",
    "```\n# out of a fence\n````\n~~~\nand more",
    "`code` ``` and \\` backslash\\",
    "a_b_c *d* ~e~ | f | &lt; [g]: http://evil <!-- h",
    "line\r# carriage return\ttab \u2028 separator",
    "snow\u00e9 \U0001d6fc \udcff",
    "> quoted\n    indented\n---\n1. listed",
]


def outside_of_fences(text: str) -> str:
    """The lines that a reader of Markdown reads as such."""
    fence, lines = "", []
    for line in text.splitlines():
        if fence:
            fence = "" if line.strip(" ") == fence else fence
        elif line.startswith("```"):
            fence = line
        else:
            lines.append(line)
    assert not fence, "each fence is closed"
    return "\n".join(lines)


def test_texts_are_shown_and_not_read() -> None:
    exchanges = [Exchange(text, tuple(TEXTS), Reply(text=text)) for text in TEXTS]
    text = to_markdown("a *model*\n# forged", exchanges, {"language model": "<img src=x>"})
    outside = outside_of_fences(text)
    assert outside.count("**Question:**") == outside.count("**Answer:**") == len(TEXTS)
    assert [line for line in outside.splitlines() if line.startswith("#")] == [
        r"# Conversation with a \*model\* \# forged"
    ]
    for sign in ("<", "[", "]", "!", "`", "_"):
        assert outside.count(sign) == outside.count(f"\\{sign}"), sign
    for each in TEXTS:
        assert text.count(f"\n{each}\n") == 2 or "\udcff" in each, "a question or an answer is not changed"


def test_names_that_are_not_utf_8() -> None:
    text = to_markdown("m", [Exchange("what ?", ("bad\udcff.png",), Reply(text="yes"))], {})
    assert "bad\ufffd.png" in text.encode().decode()
