"""A page escapes every value, and a value that its template names and nobody gives is an error."""

import re
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from fedasym.reports.html_page import render
from fedasym.reports.table import Entry, Sheet

FEDASYM = Path(__file__).parents[2] / "fedasym"
HOSTILE = """<b title="it's">&"""


def test_every_value_is_escaped_in_text_attributes_and_macros() -> None:
    sheet = Sheet(HOSTILE, [HOSTILE], [[Entry(HOSTILE, HOSTILE, True, HOSTILE)]], HOSTILE)
    template = """{% extends "layout" %}{% from "macros" import figures, section %}{% block body %}
    <i class="{{ text }}">{{ text }}</i>{{ section(sheet) }}{{ figures(drawn, wide=()) }}{% endblock %}"""
    page = render(template, title=HOSTILE, text=HOSTILE, sheet=sheet, drawn={HOSTILE: (HOSTILE, b"")})
    # Title and text twice; of the sheet title, column and note; of its entry text, small line and sign; a figure.
    assert page.count("&lt;b title=&#34;it&#39;s&#34;&gt;&amp;") == 2 + 2 + 3 + 3 + 2
    assert "<b " not in page


def test_one_file_makes_templates_and_none_marks_a_value_as_safe() -> None:
    sources = {path.name: path.read_text() for path in FEDASYM.rglob("*.py")}
    assert not [name for name, text in sources.items() if re.search(r"\|\s*safe\b|\bMarkup\b", text)]
    assert [name for name, text in sources.items() if re.search("(from|import) jinja2", text)] == ["html_page.py"]


def test_a_value_that_is_not_given_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="title"):
        render("{% extends 'layout' %}{% block body %}{% endblock %}")
