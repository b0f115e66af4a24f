"""What Python's Jinja makes of chat templates, in the environment that transformers gives them.

    python chat_templates.py FOLDER
reads FOLDER/*.jinja and FOLDER/chats.json, writes FOLDER/expected.json: of each template, of each
chat, {"text": prompt} or {"refused": reason given to raise_exception}. Chats that a template fails
on for another reason are left out. Needs the package jinja2 (3.1.6).
"""

import json
import sys
from datetime import datetime
from pathlib import Path

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError, UndefinedError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

NOW = datetime(2025, 3, 9, 15, 4, 5)


class Refusal(TemplateError):
    pass


class Generation(Extension):
    """transformers marks what a model is trained to say with this; a prompt is the same."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def raise_exception(reason):
    raise Refusal(reason)


def main():
    folder = Path(sys.argv[1])
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = NOW.strftime
    chats = json.loads((folder / "chats.json").read_text())

    expected = {}
    for path in sorted(folder.glob("*.jinja")):
        template = environment.from_string(path.read_text())
        results = expected[path.stem] = {}
        for chat in chats:
            try:
                text = template.render(
                    messages=chat["messages"],
                    tools=chat["tools"],
                    documents=None,
                    add_generation_prompt=chat["add_generation_prompt"],
                    bos_token="<s>",
                    eos_token="</s>",
                )
                results[chat["name"]] = {"text": text}
            except Refusal as refusal:
                results[chat["name"]] = {"refused": refusal.message}
            except (TypeError, UndefinedError, SecurityError) as error:
                print(f"{path.stem}, {chat['name']}: {error}", file=sys.stderr)
    text = json.dumps(expected, indent=1, ensure_ascii=False)
    (folder / "expected.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
