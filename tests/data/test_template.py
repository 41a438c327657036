"""A chat template is somebody else's program: what it does wrong is one line, and it ends."""

import signal
from typing import Any

import pytest

from mote.data import template
from mote.errors import DataError

QUESTION = [{"role": "user", "content": "What?"}]


class Templater:
    """transformers' way of applying a template, without a tokenizer."""

    def __init__(self, source: str) -> None:
        self.source = source

    def apply_chat_template(self, messages: Any, *, tokenize: bool, add_generation_prompt: bool) -> str:
        from transformers.utils.chat_template_utils import render_jinja_template

        rendered, _ = render_jinja_template(
            [messages], chat_template=self.source, add_generation_prompt=add_generation_prompt
        )
        return str(rendered[0])


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for %}", "Expected an expression"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages[7].content }}", "no element 7"),
    ],
)
def test_a_template_that_raises_names_the_row(source: str, reason: str) -> None:
    with pytest.raises(DataError, match=f"rows.jsonl:3: the checkpoint's chat template fails.*{reason}"):
        template.apply_template(Templater(source), QUESTION, generate=True, where="rows.jsonl:3")


def test_a_template_that_loops_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "CPU_SECONDS", 0.05)
    before = signal.getsignal(signal.SIGVTALRM)
    endless = Templater("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")
    with pytest.raises(DataError, match=r"ran for 0\.05 seconds without an end"):
        template.apply_template(endless, QUESTION, generate=True)
    assert signal.getsignal(signal.SIGVTALRM) is before
    assert template.apply_template(Templater("{{ messages[0].content }}"), QUESTION, generate=True) == "What?"
