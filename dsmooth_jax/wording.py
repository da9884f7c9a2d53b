"""Words and numbers of data as text: read by people, and by nothing else.

Names of data sets, classes, images, models and folders may be anything. In a line of
text they take one line, and in a CSV file no program calculates with them.
"""

import unicodedata

_REPLACED = "\N{REPLACEMENT CHARACTER}"
_BIDI = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # noqa: RUF001


def counted(number: int, noun: str) -> str:
    """Says how many there are.

    >>> counted(1, "image"), counted(5000, "test image")
    ('1 image', '5,000 test images')
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def one_line(name: str, most: int = 80) -> str:
    r"""A name as it stands in a line of text.

    Args:
      name: anything.
      most: characters; of a longer name the middle is left out.

    Returns:
      The name without line breaks. What no text may hold (control characters, halves of
      surrogate pairs) or what would turn the text after it around is shown as U+FFFD.

    >>> one_line("two\nlines"), one_line("runs/a-very-long-name/seed3", most=15)
    ('two lines', 'runs/a-…e/seed3')
    """
    shown = "".join(
        _REPLACED if c in _BIDI or unicodedata.category(c) in ("Cc", "Cs", "Cn") else c
        for c in " ".join(name.split())
    )
    if len(shown) > most:
        shown = f"{shown[: most // 2]}…{shown[len(shown) - (most - 1) // 2 :]}"
    return shown


def csv_text(text: str) -> str:
    """A text as it stands in a CSV file, where programs for tables calculate.

    What would be a formula gets an apostrophe in front, the mark of text there. A text
    that begins with an apostrophe gets one too: taking the first one off gives every
    text back.

    >>> csv_text("plain"), csv_text("=1+1"), csv_text("'quoted'")
    ('plain', "'=1+1", "''quoted'")
    """
    is_formula = text.startswith(_FORMULA) or text.lstrip().startswith(_FORMULA)
    return f"'{text}" if is_formula or text.startswith("'") else text
