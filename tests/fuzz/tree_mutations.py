"""Ways to change JSON and YAML that parses: wrong types and values, twice, swapped, too deep."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

import yaml

_MARK = "@raw@"
_DEEP = 100_000
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 0.5, -0.5, 1e-320, 1e308, -1e308),
    *(2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 2**70, -(2**31), -(2**63), 10**30, 10**400),
    *(float("nan"), float("inf"), float("-inf")),
    *("", " ", "x", "0", "-1", "1e5", "null", "NaN", "x" * 5000, "\0", "\ud800", "\U0001f600" * 9),
    *("../../../../etc/passwd", "/etc/passwd", "..", ".", "/", "a/b", "C:\\x", "~", "%s%n", "{0}"),
    *([], {}, [[]], [None], [0, "x"], {"": {}}, {"x": None}, [{}] * 3, [[1, 2], [3]]),
    *(list(range(3000)), {str(n): n for n in range(300)}),
)
# Texts that no dumper writes.
_RAW_JSON = (
    "[" * _DEEP + "]" * _DEEP,
    '{"x":' * _DEEP + "1" + "}" * _DEEP,
    "[" * _DEEP,
    "9" * 5000,
    "1e999999999",
    "-0",
    "1.",
    "'x'",
    "undefined",
    '"\\u12"',
    '"\\ud800"',
    '"\t"',
)
_RAW_YAML = (
    "!!python/object/apply:os.system ['touch canary']",
    "!!python/name:os.system",
    "!!python/object/new:subprocess.Popen [['touch', 'canary']]",
    "!!python/module:os",
    "!!binary 'AAAA'",
    "!!set {a, b}",
    "!!omap [a: 1]",
    "!!timestamp 2001-99-99",
    "2001-12-14",
    "2001-99-99",
    "0x7fffffffffffffffffff",
    "0x" + "f" * 9000,
    "0o9",
    "12:30:45",
    "1_000",
    ".inf",
    ".nan",
    "~",
    "*nobody",
    "&a [*a, *a]",
    "&a {x: *a}",
    "{? [a]: b}",
    "{? {a: b}: c}",
    "{<<: 1}",
    "{<<: [a]}",
    "[" * 2000 + "]" * 2000,
    "[" * _DEEP,
    "{a: " * 2000 + "1" + "}" * 2000,
    '"\\ud800"',
    '"\\x00"',
    "|\n  x",
    "@x",
    "`x`",
    "%x",
    "- - - -",
    "9" * 5000,
)
_BOMB = "\n".join(  # each level holds the one before it nine times
    ["b0: &b0 [x, x, x, x, x, x, x, x, x]"]
    + [f"b{n}: &b{n} [{', '.join([f'*b{n - 1}'] * 9)}]" for n in range(1, 12)]
)


def change_tree(draw: random.Random, tree: Any) -> Any:
    """A copy with one to three nodes changed."""
    tree = copy.deepcopy(tree)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        tree = _change_once(draw, tree)
    return tree


def change_json(draw: random.Random, text: str) -> str:
    """The text of a JSON value, changed so that most results still parse."""
    tree = json.loads(text)
    kind = draw.randrange(10)
    if kind == 0:
        return _with_raw(draw, tree, _RAW_JSON)
    if kind == 1 and isinstance(tree, dict) and tree:
        return _with_key_twice(draw, tree)
    return json.dumps(change_tree(draw, tree), ensure_ascii=draw.random() < 0.8)


def change_yaml(draw: random.Random, text: str) -> str:
    """The text of a YAML mapping, changed."""
    tree = yaml.safe_load(text)
    kind = draw.randrange(10)
    if kind <= 2:
        marked = _with_mark(draw, tree)
        dumped = yaml.safe_dump(marked, sort_keys=False)
        return dumped.replace(f"'{_MARK}'", draw.choice(_RAW_YAML))
    if kind == 3:
        place = draw.choice([*tree, "model"])
        return f"{_BOMB}\n{text}\n{place}: *b{draw.choice((3, 8, 11))}\n"
    if kind == 4:
        lines = text.splitlines(keepends=True)
        line = draw.choice(lines)
        return text + line if draw.random() < 0.5 else text.replace(line, "\t" + line)
    return yaml.safe_dump(change_tree(draw, tree), sort_keys=False, allow_unicode=True)


def change_json_lines(draw: random.Random, text: str) -> str:
    """Lines of JSON, one of them changed, doubled or taken away."""
    lines = text.splitlines()
    if not lines:
        return text
    at = draw.randrange(len(lines))
    kind = draw.randrange(8)
    if kind == 0:
        lines.insert(at, draw.choice(("", " ", "null", "[]", "1", '"x"', "{", "\0", "{}")))
    elif kind == 1:
        lines.insert(at, lines[at])
    elif kind == 2:
        lines[at] = lines[at] + lines[at]
    else:
        lines[at] = change_json(draw, lines[at])
    return "\n".join(lines) + draw.choice(("\n", "\n", "", "\r\n"))


def _change_once(draw: random.Random, tree: Any) -> Any:
    places = list(_places(tree))
    if not places:
        return draw.choice(_VALUES)
    holder, key = draw.choice(places)
    kind = draw.randrange(8)
    if kind == 0:
        del holder[key]
    elif kind == 1:
        other, other_key = draw.choice(places)
        try:
            value = copy.deepcopy(other[other_key])
        except (KeyError, IndexError):
            return tree
        holder[key] = value
    elif kind == 2 and isinstance(holder, dict):
        holder[draw.choice((str(key) + "x", "", "../x", "\0", "__class__"))] = holder.pop(key)
    elif kind == 3 and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(draw.choice((holder[key], *_VALUES))))
    elif kind == 4 and isinstance(holder[key], int | float):
        holder[key] = holder[key] * draw.choice((-1, 2, 10**6, 3))
    else:
        holder[key] = copy.deepcopy(draw.choice(_VALUES))
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every container and key of a tree, of long lists only some."""
    pending, visited = [tree], 0
    while pending and visited < 3000:  # aliases of YAML can make it endless
        visited += 1
        node = pending.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if node else []
        if not isinstance(node, dict | list):
            continue
        for key in list(keys)[:60]:
            yield node, key
            if isinstance(node[key], dict | list):
                pending.append(node[key])


def _with_mark(draw: random.Random, tree: Any) -> Any:
    tree = copy.deepcopy(tree)
    places = list(_places(tree))
    if not places:
        return _MARK
    holder, key = draw.choice(places)
    holder[key] = _MARK
    return tree


def _with_raw(draw: random.Random, tree: Any, texts: tuple[str, ...]) -> str:
    return json.dumps(_with_mark(draw, tree)).replace(f'"{_MARK}"', draw.choice(texts))


def _with_key_twice(draw: random.Random, tree: dict[str, Any]) -> str:
    key = draw.choice(list(tree))
    again = json.dumps({key: draw.choice((tree[key], *_VALUES))})[1:-1]
    return f"{{{again}, {json.dumps(tree)[1:]}"
