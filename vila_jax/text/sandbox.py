"""A Jinja environment for chat templates that come with a checkpoint, and are therefore untrusted.

It offers what `transformers` offers to chat templates (`raise_exception`, `strftime_now`, `tojson`, `namespace`,
`dict`, loop controls, the `generation` block, `trim_blocks`, `lstrip_blocks`) inside Jinja's immutable sandbox, which
keeps a template from Python's internals, and adds what the sandbox lacks: a template can neither hang nor fill the
memory (the class of CVE-2025-61620). `TemplateLimits` holds the limits; they are enforced at every place where a
template can loop or make a value:

    {% for x in y %}                    every step looks at the CPU time spent
    a + b, a * b, a ** b, a % b …       the size of the result is bounded before it is computed
    a ~ b, [a, b], {a: b}, s[1:]        what is made is charged to the work limit
    f(x), x | filter, x is test         likewise; a few that can amplify are bounded beforehand
    macros, set blocks, the output      charged when their pieces are joined

Left out, because no prompt needs them and their cost cannot be bounded: the filters `striptags`, `urlize`, `xmlattr`,
`pprint`, `wordwrap` and the global `lipsum`.
"""

import contextlib
import contextvars
import dataclasses
import functools
import json
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import ext, nodes, sandbox, utils, visitor
from jinja2.runtime import LoopContext

from vila_jax.text import sizes

_LEFT_OUT = ("striptags", "urlize", "xmlattr", "pprint", "wordwrap")
_MADE, _JOINED, _LOOPED = " made", " joined", " looped"  # the space keeps templates from naming these filters


class TemplateLimitError(Exception):
    """A template that exceeds a limit; not a Jinja error, so that Jinja never handles it itself."""


class TemplateRefusal(jinja2.TemplateError):
    """A conversation that the template itself refuses."""


@dataclasses.dataclass(frozen=True)
class TemplateLimits:
    """What one template may use.

    Attributes:
      source_chars: length of the template itself.
      output_chars: length of the text it renders, and the size of any one list or mapping it builds.
      work_chars: characters and list items that it may make on the way, discarded ones included.
      cpu_seconds: CPU time of the rendering thread, compilation included; checked at every loop step and operation,
        of which none can take long because of the other limits.
    """

    source_chars: int = 1 << 18
    output_chars: int = 1 << 21
    work_chars: int = 1 << 25
    cpu_seconds: float = 2.0


class _Meter:
    """What the template being rendered may still use."""

    def __init__(self, limits: TemplateLimits):
        self._limits = limits
        self._work = limits.work_chars
        self._deadline = time.thread_time() + limits.cpu_seconds

    def tick(self) -> None:
        if time.thread_time() > self._deadline:
            raise TemplateLimitError(f"it computes for more than {self._limits.cpu_seconds:g} seconds")

    def afford(self, size: int) -> None:
        """Refuses a value of `size` before it is made."""
        self.tick()
        if size > self._work:
            raise TemplateLimitError(f"it makes more than {self._limits.work_chars:,} characters on the way")

    def spend(self, value: Any) -> Any:
        """Charges a value that was made, and returns it."""
        if isinstance(value, list | tuple | dict | set | frozenset):
            # Nested values share parts, so that a small graph may print as a large tree: bound what it would print as.
            if sizes.tree_size(value, self._limits.output_chars) > self._limits.output_chars:
                raise TemplateLimitError(
                    f"it builds a list or mapping of more than {self._limits.output_chars:,} items"
                )
            size = len(value)
        else:
            size = sizes.flat_size(value)
        self.afford(size)
        self._work -= size
        return value


_METER: contextvars.ContextVar[_Meter] = contextvars.ContextVar("template_meter")


@contextlib.contextmanager
def metered(limits: TemplateLimits) -> Iterator[None]:
    """Applies the limits to the compilation and rendering done inside the `with` block, on this thread."""
    token = _METER.set(_Meter(limits))
    try:
        yield
    finally:
        _METER.reset(token)


def _looped(iterable: Iterable[Any]) -> Iterator[Any]:
    meter = _METER.get()
    for item in iterable:
        meter.tick()
        yield item


def _listed(value: Any) -> Any:
    """A lazy sequence as a list, so that its size is known; anything else as it is."""
    lazy = isinstance(value, Iterator) and not isinstance(value, LoopContext)
    return list(_looped(value)) if lazy else value


def _joined(pieces: Iterable[Any]) -> str:
    meter = _METER.get()
    texts, length = [], 0
    for piece in pieces:
        texts.append(str(piece))
        length += len(texts[-1])
        meter.afford(length)
    return meter.spend("".join(texts))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As in `transformers`: Jinja's own `tojson` escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: Any) -> None:
    raise TemplateRefusal(str(message)[:500])


def _strftime_now(pattern: str) -> str:
    if len(pattern) > 200:  # the C library's buffer grows with the pattern
        raise TemplateLimitError("it formats a date with more than 200 characters")
    return datetime.now().strftime(pattern)


class _Dict:
    """`dict` as a plain function, without the attributes of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict:
        return dict(*args, **kwargs)


class _Namespace(utils.Namespace):
    """A namespace that takes no underscored names, and whose text does not grow with what it holds."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _check_name(name)
        utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<namespace>"


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace takes no underscored name, but got {name!r}")


class _Generation(ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks what the assistant says, for training; here it only renders."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own type

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller: Callable[[], str]) -> str:
        return caller()


class _MeterNodes(visitor.NodeTransformer):
    """Sends every loop's iterable, and every value that an expression makes, through a metering filter."""

    @staticmethod
    def _filter(node: Any, name: str) -> nodes.Filter:
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = self._filter(node.iter, _LOOPED)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return self._filter(nodes.List(node.nodes, lineno=node.lineno), _JOINED)

    def visit_List(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") != "load" else self._filter(node, _MADE)

    visit_Dict = visit_Tuple = visit_List

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return self._filter(node, _MADE) if isinstance(node.arg, nodes.Slice) else node


class TemplateEnvironment(sandbox.ImmutableSandboxedEnvironment):
    """Jinja's sandbox with the names of `transformers`, metered; compile and render inside `metered(limits)`."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "**", "%"])
    concat = staticmethod(_joined)

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols])
        self.filters["tojson"] = _tojson
        for name in _LEFT_OUT:
            del self.filters[name]
        self.filters = {name: _metered_filter(name, function) for name, function in self.filters.items()}
        self.filters |= {_MADE: lambda value: _METER.get().spend(value), _JOINED: _joined, _LOOPED: _looped}
        self.tests = {name: _metered_test(function) for name, function in self.tests.items()}
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "dict": _Dict(),
            "namespace": _Namespace,
        }

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = _MeterNodes().visit(super()._parse(source, name, filename))
        return tree.set_environment(self)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        meter = _METER.get()
        meter.afford(sizes.binop_bound(operator, left, right))
        return meter.spend(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        meter = _METER.get()
        if isinstance(__obj, LoopContext) and args:  # `loop(children)` of a recursive loop
            args = (_looped(args[0]), *args[1:])
        else:
            args = tuple(_listed(argument) for argument in args)
        meter.afford(sizes.call_bound(__obj, args, kwargs))
        return meter.spend(super().call(__context, __obj, *args, **kwargs))


def _metered_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    # Jinja passes the context, the evaluation context or the environment first to functions that are marked so.
    skip = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        meter = _METER.get()
        args = (*args[:skip], _listed(args[skip]), *args[skip + 1 :])
        meter.afford(sizes.filter_bound(name, args[skip], args[skip + 1 :], kwargs))
        return meter.spend(function(*args, **kwargs))

    return call


def _metered_test(function: Any) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        _METER.get().tick()
        return function(*args, **kwargs)

    return call


_SCALARS: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
)


def plain_data(value: Any) -> Any:
    """A copy of the value made of JSON's types alone; anything else becomes the name of its type.

    A template only asks whether an image is there; a PIL image itself would bring methods that the sandbox does not
    know, some of which write files.
    """
    if value is None or type(value) in (bool, int, float, str):  # not their subclasses, which may carry methods
        return value
    for kind, convert in _SCALARS:
        if isinstance(value, kind):
            return convert(value)
    if isinstance(value, Mapping):
        return {str(key): plain_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_data(item) for item in value]
    return f"<{type(value).__name__}>"


@functools.cache
def _environment() -> TemplateEnvironment:
    return TemplateEnvironment()


@functools.lru_cache(maxsize=32)
def _compiled(source: str) -> jinja2.Template:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # published templates hold escapes like "<\\s>"
        return _environment().from_string(source)


def render_template(source: str, variables: Mapping[str, Any], limits: TemplateLimits) -> str:
    """Renders a template under limits.

    Args:
      source: the template.
      variables: what the template sees; give it plain data (`plain_data`).
      limits: what it may use.

    Raises:
      TemplateLimitError: the template exceeds a limit.
      TemplateRefusal: the template calls `raise_exception`.
      Exception: whatever the template's own mistakes raise.
    """
    if len(source) > limits.source_chars:
        raise TemplateLimitError(f"it is {len(source):,} characters long, more than {limits.source_chars:,}")
    pieces: list[str] = []
    length = 0
    with metered(limits):
        for piece in _compiled(source).generate(variables):
            pieces.append(piece)
            length += len(piece)
            if length > limits.output_chars:
                raise TemplateLimitError(f"it renders more than {limits.output_chars:,} characters")
    return "".join(pieces)
