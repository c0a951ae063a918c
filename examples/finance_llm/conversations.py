"""Write conversations for tools/preprocess_chat.py from documents, by template.

Of a chapter of a law, every article becomes a question for its wording; every second one also has a
question for where it stands. Of other text, every document becomes a request to go on with its
first paragraph. A team replaces this by what its users ask.

Example:
    python3 examples/finance_llm/conversations.py --input train.jsonl --output chat.jsonl
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from statutes import articles, law_of

from dongwu_jax.command_line import run_command_line
from dongwu_jax.data.jsonl import expand_inputs, parse_texts, read_lines
from dongwu_jax.errors import UserError
from dongwu_jax.output_files import check_output_file, write_output_file

Message = dict[str, str]


def main(arguments: list[str] | None = None) -> int:
    """Read, write."""
    options = _parse(arguments)
    check_output_file(options.output)
    lines = []
    for path, number, line in read_lines(expand_inputs(options.input)):
        (text,) = parse_texts(line, ["text"], path, number)[0]
        for messages in conversations(text):
            lines.append(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    if not lines:
        raise UserError(f"{options.input[0]}: has no law, and no document of two paragraphs")
    write_output_file(options.output, "".join(lines).encode(errors="replace"))
    print(f"{options.output}: {len(lines):,} conversations")
    return 0


def conversations(text: str) -> Iterator[list[Message]]:
    """The conversations about one document."""
    law = law_of(text)
    if law is None:
        first, _, rest = text.strip().partition("\n")
        if rest.strip():
            yield _turn(f"请接着写下去：\n{first}", rest.strip())
        return
    for index, article in enumerate(articles(text)):
        wording = _turn(f"《{law}》{article.number}是怎么规定的？", article.text)
        if index % 2:
            beginning = article.text[:40]
            where = f"出自《{law}》{article.number}。"
            wording += _turn(f"“{beginning}……”出自哪部法律的哪一条？", where)
        yield wording


def _turn(question: str, answer: str) -> list[Message]:
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--input", nargs="+", required=True, metavar="FILE", help=".jsonl (key: text)")
    add("--output", type=Path, required=True, help=".jsonl to write")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_command_line(main)
