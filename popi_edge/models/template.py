"""Chat templates of others, rendered in Jinja's sandbox within bounds: a template is a program, maybe a hostile one.

Bounded: its length, nesting and steps, the time it takes, every text and list that it makes, and what it may call. It
sees messages and a few texts, no files, no modules. Not covered: what a template says (it may leave messages out, which
its user checks).
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import BuiltinMethodType, FrameType
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from popi_edge.errors import ModelError

MAX_LENGTH, MAX_NODES, MAX_DEPTH = 1 << 15, 2_500, 48
MAX_STEPS, MAX_SECONDS = 30_000, 0.5
"""Lines of Python that the compiled template may run, and how long: a usual one runs a few hundred."""
MAX_TEXT, MAX_ITEMS = 1 << 18, 1 << 12
MAX_NUMBER = 1 << 53
FILTERS = ("default", "d", "first", "items", "join", "last", "length", "count", "list", "lower", "map", "reject",
           "rejectattr", "replace", "reverse", "select", "selectattr", "string", "title", "tojson", "trim", "upper",
           "dictsort", "int", "float", "safe", "e", "escape", "capitalize")  # fmt: skip
METHODS = frozenset({
    "strip", "lstrip", "rstrip", "split", "rsplit", "splitlines", "startswith", "endswith", "upper", "lower", "title",
    "capitalize", "replace", "find", "rfind", "index", "count", "join", "partition", "rpartition", "removeprefix",
    "removesuffix", "isdigit", "isalpha", "isspace", "get", "items", "keys", "values", "copy",
})  # fmt: skip
"""Of texts, lists and dictionaries; none makes more than ``call`` can tell beforehand."""
SCALARS = (str, int, float, bool, type(None), Undefined)


_now = threading.local()


class Refused(TemplateError):
    """A bound was met."""


def size(value: object, limit: int = MAX_ITEMS) -> int:
    """How many values are in lists in lists, each time that they stand there. Raises Refused beyond ``limit``."""
    count, left = 0, [value]
    while left:
        one = left.pop()
        count += 1
        if count > limit:
            raise Refused(f"it makes a list of more than {limit:,} values")
        if isinstance(one, Mapping):
            left += [*one.keys(), *one.values()]
        elif isinstance(one, (list, tuple, set, frozenset)):
            left += one
    if (steps := getattr(_now, "steps", None)) is not None:
        steps.spend(count)
    return count


def made(value: Any) -> Any:
    """A list, tuple or dictionary that a template has written down, once it is known not to be too large."""
    size(value)
    return value


def concatenated(*parts: Any) -> str:
    """``a ~ b``."""
    return bounded("".join(_text(p) for p in parts))


def bounded(text: str) -> str:
    if len(text) > MAX_TEXT:
        raise Refused(f"it makes a text of more than {MAX_TEXT:,} characters")
    return text


def _text(value: Any) -> str:
    if not isinstance(value, SCALARS):
        raise Refused(f"it prints a {type(value).__name__}")
    return bounded(str(value))


class _Guard(NodeTransformer):
    """Puts the functions above where Jinja would do without asking."""

    def _wrapped(self, node: nodes.Expr) -> nodes.Expr:
        self.generic_visit(node)
        name = nodes.ImportedName(f"{__name__}.made")
        return nodes.Call(name, [node], [], None, None, lineno=node.lineno)

    visit_List = visit_Tuple = visit_Dict = _wrapped

    def visit_For(self, node: nodes.For) -> nodes.For:
        target = node.target  # a tuple there is no value
        node.target = nodes.Name("x", "store")
        self.generic_visit(node)
        node.target = target
        return node

    def visit_Assign(self, node: nodes.Assign) -> nodes.Assign:
        node.node = self.visit(node.node)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        name = nodes.ImportedName(f"{__name__}.concatenated")
        return nodes.Call(name, node.nodes, [], None, None, lineno=node.lineno)


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's own sandbox, with bounds on what one operation may make."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        more = ["jinja2.ext.loopcontrols"]
        super().__init__(trim_blocks=True, lstrip_blocks=True, finalize=self._printed, extensions=more)
        self.filters = {name: self.filters[name] for name in FILTERS}
        self.filters |= {"join": self._join, "replace": self._replace, "string": _text, "tojson": self._json}
        self.globals = {"range": self._range, "namespace": self.globals["namespace"], "dict": self._dict,
                        "raise_exception": self._raise, "strftime_now": lambda form: ""}  # fmt: skip
        self.printed = 0

    def _printed(self, value: Any) -> str:
        text = _text(value)
        self.printed += len(text)
        if self.printed > MAX_TEXT:
            raise Refused(f"it prints more than {MAX_TEXT:,} characters")
        return text

    @staticmethod
    def _range(*given: int) -> range:
        found = range(*given)
        if len(found) > MAX_ITEMS:
            raise Refused(f"a range of more than {MAX_ITEMS:,}")
        return found

    @staticmethod
    def _dict(*given: Any, **named: Any) -> dict[Any, Any]:
        return dict(made(dict(*given, **named)))

    @staticmethod
    def _raise(message: object) -> str:
        raise TemplateError(str(message)[:200])

    @staticmethod
    def _join(value: Any, separator: str = "", attribute: str | None = None) -> str:
        if attribute is not None:
            raise Refused("it joins by an attribute")
        parts, total = [], 0
        for part in value:
            parts.append(_text(part))
            total += len(parts[-1]) + len(separator)
            if total > MAX_TEXT or len(parts) > MAX_ITEMS:
                raise Refused(f"it makes a text of more than {MAX_TEXT:,} characters")
        return _text(separator).join(parts)

    @staticmethod
    def _replace(text: str, old: str, new: str, count: int | None = None) -> str:
        text, old, new = _text(text), _text(old), _text(new)
        if len(text) + (text.count(old) if old else len(text) + 1) * len(new) > MAX_TEXT:
            raise Refused(f"it makes a text of more than {MAX_TEXT:,} characters")
        return text.replace(old, new, -1 if count is None else count)

    @staticmethod
    def _json(value: Any, indent: int | None = None, **more: Any) -> str:
        import json

        size(value)
        return bounded(json.dumps(value, ensure_ascii=False, indent=min(indent, 8) if indent is not None else None))

    def wrap_str_format(self, value: Any) -> None:
        """Jinja would let a text's ``format`` pass; here it is a method like any other, and not one of METHODS."""

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = all(isinstance(x, (int, float)) and abs(x) <= MAX_NUMBER for x in (left, right))
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            return concatenated(left, right)
        if operator == "+" and isinstance(left, list) and isinstance(right, list):
            return made(left + right)
        if operator == "**" or not numbers:
            raise Refused(f"{type(left).__name__} {operator} {type(right).__name__}")
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner: Any = getattr(__obj, "__self__", None)
        if isinstance(owner, (str, list, tuple, Mapping)) and isinstance(__obj, BuiltinMethodType):
            if __obj.__name__ not in METHODS:
                raise Refused(f"it calls {type(owner).__name__}.{__obj.__name__}")
            if isinstance(owner, str) and __obj.__name__ == "replace":
                return __self._replace(owner, *args)
            if isinstance(owner, str) and __obj.__name__ == "join":
                return __self._join(args[0] if args else (), owner)
        return super().call(__context, __obj, *args, **kwargs)


class _Steps:
    """Ends what runs inside after so many lines of Python, or so long. Of this thread alone."""

    def __init__(self) -> None:
        self.left, self.end = MAX_STEPS, time.monotonic() + MAX_SECONDS

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0 or (self.left & 15 == 0 and time.monotonic() > self.end):
            raise Refused("it does not end")

    def line(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        if frame.f_code.co_filename == __file__:
            return None  # these functions say themselves what they cost
        self.spend(1)
        return self.line

    def __enter__(self) -> None:
        self.before = sys.gettrace()
        _now.steps = self
        sys.settrace(self.line)

    def __exit__(self, *_: object) -> None:
        sys.settrace(self.before)
        _now.steps = None


def _checked(tree: nodes.Template) -> nodes.Template:
    """The tree within bounds. Raises Refused."""
    count, level = 0, [tree]
    for _ in range(MAX_DEPTH):
        following: list[Any] = []
        for node in level:
            following += node.iter_child_nodes()
        count += len(following)
        if count > MAX_NODES:
            raise Refused("it has too many parts")
        if not following:
            return tree
        level = following
    raise Refused(f"it is nested more than {MAX_DEPTH} deep")


def render(template: str, messages: Sequence[Mapping[str, Any]], **names: Any) -> str:
    """The text that a template makes of messages. Raises ModelError where it is none, fails or goes beyond a bound."""
    if not template.strip() or len(template) > MAX_LENGTH:
        raise ModelError("the model has no usable chat template" if len(template) <= MAX_LENGTH else
                         f"the model's chat template has more than {MAX_LENGTH:,} characters")  # fmt: skip
    sandbox = Sandbox()
    try:
        tree = _Guard().visit(_checked(sandbox.parse(template)))
        page = sandbox.from_string(tree)
        with _Steps():
            return page.render(messages=messages, **names)
    except RecursionError:
        raise ModelError("the model's chat template fails: it is nested too deeply") from None
    except (TemplateError, SecurityError, SyntaxError, TypeError, ValueError, ArithmeticError, LookupError,
            AttributeError, MemoryError) as e:  # fmt: skip
        raise ModelError(f"the model's chat template fails: {' '.join(str(e).split())[:120]}") from None
