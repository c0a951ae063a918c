"""Jinja for programs that strangers wrote: no way out, no endless loop, no text without end.

Jinja's own sandbox keeps a template from Python and from changing what it is given. Here it also
may compute only so long, and make only texts and lists of a size that a conversation can have.
"""

import time
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

_MOST_SECONDS = 10.0  # of this thread's processor, for one text; real templates take microseconds
_LARGEST = 1 << 24  # characters of a text, elements of a list, or a number that asks for as many
_MOST_BITS = 256  # of a power


class TemplateLimitError(jinja2.TemplateRuntimeError):
    """A template asks for too much."""


class LimitedSandbox(ImmutableSandboxedEnvironment):
    """An environment whose templates end; it renders one of them at a time."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._deadline = 0.0
        self.globals.pop("lipsum")

    def load(self, source: str) -> jinja2.Template:
        """A template whose loops, macros and filters are watched.

        Raises:
            jinja2.TemplateError: it is none.
        """
        tree = _Watched().visit(self.parse(source))
        code = self.compile(tree)
        return self.template_class.from_code(self, code, self.make_globals(None), None)

    def render(self, template: jinja2.Template, **variables: Any) -> str:
        """The text that a template of `load` writes.

        Raises:
            TemplateLimitError: it computes for too long, or asks for too much.
            Exception: whatever the template's own mistakes raise.
        """
        self._deadline = time.thread_time() + _MOST_SECONDS
        return template.render(**variables)

    def go_on(self) -> bool:
        """True, while there is time."""
        if time.thread_time() > self._deadline:
            raise TemplateLimitError(f"it computes for more than {_MOST_SECONDS:g} seconds")
        return True

    def bounded(self, value: Any) -> Any:
        """The value, if it is not too large."""
        self.go_on()
        size = abs(value) if isinstance(value, int) else _length(value)
        if size > _LARGEST:
            raise TemplateLimitError(f"it asks for more than {_LARGEST} characters or elements")
        return value

    def joined(self, *values: Any) -> str:
        """What `~` gives."""
        return self.bounded("".join(str(self.bounded(value)) for value in values))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operation whose result is bounded before it is made."""
        if operator == "**":
            bits = left.bit_length() * abs(right) if _are_whole(left, right) else 0
            if bits > _MOST_BITS:
                raise TemplateLimitError(f"it computes a power of more than {_MOST_BITS} bits")
        elif operator == "+":
            self.bounded(_length(left) + _length(right))
        elif operator == "*" and not _are_whole(left, right):
            self.bounded(_repeats(left) * _repeats(right))
        elif operator == "%" and isinstance(left, str):
            raise TemplateLimitError("it formats with %, whose widths know no bound; use ~")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, function: Any, *arguments: Any, **named: Any) -> Any:
        """A call of bounded arguments and result."""
        for argument in (*arguments, *named.values()):
            self.bounded(argument)
        return self.bounded(super().call(context, function, *arguments, **named))


class _Watched(NodeTransformer):
    """Puts calls of the environment's watching methods into a template."""

    def visit_For(self, loop: nodes.For) -> nodes.Node:
        self.generic_visit(loop)
        loop.body.insert(0, nodes.ExprStmt(_call("go_on")))
        if loop.test is not None:
            loop.test = nodes.And(_call("go_on"), loop.test)
        return loop

    def visit_Macro(self, macro: nodes.Macro) -> nodes.Node:
        self.generic_visit(macro)
        macro.body.insert(0, nodes.ExprStmt(_call("go_on")))
        return macro

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:
        self.generic_visit(node)
        node.args = [_call("bounded", argument) for argument in node.args]
        for keyword in node.kwargs:
            keyword.value = _call("bounded", keyword.value)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("joined", *node.nodes)


def _call(method: str, *arguments: nodes.Expr) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(method), list(arguments), [], None, None)


def _are_whole(left: Any, right: Any) -> bool:
    return isinstance(left, int) and isinstance(right, int)


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple | dict) else 0


def _repeats(value: Any) -> int:
    """What a factor of a product contributes to its length."""
    return max(value, 0) if isinstance(value, int) else _length(value)
