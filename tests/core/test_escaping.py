"Names that mean something to a browser, a spreadsheet, a terminal or a workflow mean nothing there."

import csv
import io
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from cv_pipeline.core.escaping import (
    csv_plain,
    csv_text,
    html_text,
    link_text,
    markdown_text,
    one_line,
    visible,
)
from tests.helpers.markup import sources, unescaped

ROOT = Path(__file__).resolve().parents[2]
NASTY = st.text(st.sampled_from("<>&'\"=+-@|`*[]()\\\n\r\t\x00\x1b\x9b\u202e\udc80 a#~${}:/é"), max_size=30)


class Reader(HTMLParser):
    "Collects tags, attributes and text as a browser would see them."

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.tags, self.given, self.text = [], [], ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.given += attrs

    def handle_data(self, data):
        self.text += data


@given(NASTY)
@pytest.mark.slow
def test_a_browser_sees_the_text_and_no_tag(text):
    page = Reader(f'<p title="{html_text(text)}">{html_text(text)}</p>')
    assert page.tags == ["p"]
    assert page.given == [("title", visible(text))]
    assert page.text == visible(text)


@given(NASTY)
def test_a_link_never_has_a_scheme_of_its_own(text):
    (_, address), *rest = Reader(f'<a href="{link_text(text)}">x</a>').given
    assert rest == [] and ":" not in address and address.isascii()


@given(NASTY)
def test_markdown_sees_no_markup(text):
    table = f"| a | b |\n|---|---|\n| x{markdown_text(text)} | y |"
    page = Reader(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(table))
    assert set(page.tags) <= {"table", "thead", "tbody", "tr", "th", "td"}
    assert page.tags.count("td") == 2


@given(NASTY)
def test_a_spreadsheet_computes_nothing_and_we_read_the_same(text):
    cell = csv_text(text)
    assert not cell.lstrip().startswith(("=", "+", "-", "@", "|"))
    file = io.StringIO()
    csv.writer(file).writerow([cell])
    ((back,),) = csv.reader(io.StringIO(file.getvalue(), newline=""))
    assert csv_plain(back) == visible(text)


@pytest.mark.parametrize("number", [-1, -1.5, 0, None])
def test_numbers_stay_numbers(number):
    assert csv_text(number) == number


@given(NASTY)
def test_one_line_is_one_line_that_can_be_written_anywhere(text):
    line = one_line(text)
    assert len(line.splitlines()) <= 1
    line.encode("utf-8")
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in line)


@pytest.mark.parametrize(("where", "code"), [pytest.param(w, c, id=w) for w, c in sources(ROOT)])
def test_nothing_goes_into_html_as_it_is(where, code):
    assert unescaped(code) == []
    assert "escape(" not in code.replace("glob_escape(", "") or where.endswith(("escaping.py", "terminal.py"))


@pytest.mark.parametrize(
    "code",
    [
        'f"<p>{name}</p>"',
        'f"<p>{x.name}</p>"',
        'f"<p>{str(name)}</p>"',
        'f"<p>{name:>10}</p>"',
        'f"<p title={name!r}>"',
        'def f(name):\n    text = f"{name}!"\n    return f"<b>{text}</b>"',
        "f\"<ul>{''.join(f'<li>{n}</li>' for n in names)}</ul>\"",
        'f"<td>{values[0] or 1}</td>"',
        'def f(x):\n    return x\nf"<td>{f(name)}</td>"',
        'name = html_text(a)\ndef f(name):\n    return f"<td>{name}</td>"',
    ],
)
def test_the_reader_of_code_finds_what_is_not_escaped(code):
    assert unescaped(code)


@pytest.mark.parametrize(
    "code",
    [
        'f"<p>{html_text(name)}</p>"',
        'f"<p>{n:.1f} of {len(names)}</p>"',
        'text = html_text(name)\nf"<p>{text}</p>"',
        "f\"<ul>{''.join(f'<li>{html_text(n)}</li>' for n in names)}</ul>\"",
        'f"a {name}"',
        'def f(x):\n    return html_text(x)\nf"<td>{f(name)}</td>"',
    ],
)
def test_the_reader_of_code_leaves_in_peace_what_is(code):
    assert unescaped(code) == []


@given(NASTY)
def test_a_terminal_shows_the_text_and_nothing_moves(text):
    from rich.text import Text

    from cv_pipeline.commands.terminal import plain

    shown = Text.from_markup(f"[red]{plain(text)}[/]")
    assert shown.plain.replace("\\", "") == visible(text).replace("\\", "")  # rich takes one before a bracket
    assert "\x1b" not in plain(text) and "\x9b" not in plain(text)
