"""What is known of shapes, and of the whole numbers computed from them, as expressions over the input's dimensions.

    x [batch, seq, 128] -> Shape -> [batch, seq, 128] -> Gather 1 -> seq -> Concat(.., 4, 32) -> [batch, seq, 4, 32]

`interpret` walks the nodes once, in order. Dimensions come from the graph's inputs through shape inference and
through the rules below; a named dimension is one size wherever the name stands, an unnamed one is a size of its
own. Facts hold for every run that does not fail. Operators without a rule have what shape inference says.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from . import graph, sizes
from .shapes import Shapes
from .sizes import Size

Dims = tuple[Size, ...]

MOST_ELEMENTS = 256
"""Tensors with more elements are not followed: what shapes are computed from is small."""

FAR = 2**31 - 1
"""Exporters write a slice's open end as the largest int32 or int64."""

_MOST_FORKS = 64
_FORK_NODES = 400
"""How far ahead of an undecided If its branches are told apart."""

_INTEGERS = frozenset({ir.DataType.BOOL, ir.DataType.INT32, ir.DataType.INT64})
"""Types whose elements are followed: what shapes are computed in."""


@dataclass(frozen=True)
class Content:
    """The elements of a small tensor of whole numbers (bool: 0 and 1); None for one that is not known."""

    dtype: ir.DataType
    shape: tuple[int, ...]
    elements: tuple[Size | None, ...]

    def is_number(self) -> bool:
        """Say whether every element is a known number."""
        return all(e is not None and e.as_int() is not None for e in self.elements)

    def numbers(self) -> list[int] | None:
        """Return the elements, None unless all are known numbers."""
        found = [None if e is None else e.as_int() for e in self.elements]
        return [n for n in found if n is not None] if None not in found else None

    def array(self) -> np.ndarray | None:
        """Return the tensor, None unless all elements are known numbers that its type can hold."""
        numbers = self.numbers()
        if numbers is None:
            return None
        try:
            return np.array(numbers, dtype=self.dtype.numpy()).reshape(self.shape)
        except OverflowError:
            return None


@dataclass(frozen=True)
class Fact:
    """What is known of one value."""

    dims: Dims | None = None
    content: Content | None = None


_UNKNOWN = Fact()


class ImpossibleError(Exception):
    """A node would fail in every run: what was assumed of its inputs can't be."""


class Facts:
    """Facts by value. A fork sees those of its parent and keeps its own apart."""

    def __init__(self, inferred: Shapes, parent: Facts | None = None) -> None:
        self.inferred = inferred
        self._parent = parent
        self._own: dict[ir.Value, Fact] = {}
        self._fresh: itertools.count[int] = itertools.count() if parent is None else parent._fresh  # noqa: SLF001
        self.forks_left = _MOST_FORKS if parent is None else 0

    def fork(self) -> Facts:
        """Return facts to which assumptions can be added."""
        return Facts(self.inferred, self)

    def own(self) -> Mapping[ir.Value, Fact]:
        """Return the facts that were set here and not in the parent."""
        return self._own

    def set(self, value: ir.Value, fact: Fact) -> None:
        """Keep what is known of a value."""
        self._own[value] = fact

    def of(self, value: ir.Value | None) -> Fact:
        """Return what is known of a value."""
        if value is None:
            return _UNKNOWN
        facts: Facts | None = self
        while facts is not None:
            if value in facts._own:  # noqa: SLF001
                return facts._own[value]  # noqa: SLF001
            facts = facts._parent  # noqa: SLF001
        fact = self._constant(value)
        self._own[value] = fact
        return fact

    def dims(self, value: ir.Value | None) -> Dims | None:
        """Return the dimensions of a value, None where not even the rank is known."""
        return self.of(value).dims

    def content(self, value: ir.Value | None) -> Content | None:
        """Return the elements of a value, None where they are not followed."""
        return self.of(value).content

    def fresh(self) -> Size:
        """Return a size of which nothing is known."""
        return Size.symbol(f"?{next(self._fresh)}")

    def inferred_dims(self, value: ir.Value) -> Dims | None:
        """Return what shape inference says, with a fresh size for every unnamed dimension."""
        dims = self.inferred.shape(value)
        if dims is None:
            return None
        return tuple(
            Size.number(d) if isinstance(d, int) else Size.symbol(d) if d and d != "?" else self.fresh() for d in dims
        )

    def _constant(self, value: ir.Value) -> Fact:
        tensor = graph.constant_tensor(value)
        if tensor is None:
            return Fact(self.inferred_dims(value))
        shape = graph.dims(tensor)
        content = None
        if tensor.dtype in _INTEGERS and tensor.size <= MOST_ELEMENTS:
            numbers = tensor.numpy().reshape(-1).tolist()
            content = Content(tensor.dtype, shape, tuple(Size.number(n) for n in numbers))
        return Fact(tuple(Size.number(n) for n in shape), content)


def interpret(model: ir.Model, inferred: Shapes) -> Facts:
    """Return what is known of every value of the main graph and its bodies."""
    facts = Facts(inferred)
    for value in model.graph.inputs:
        facts.of(value)
    _walk(model.graph, facts)
    return facts


def broadcast(shapes: Sequence[Dims | None], fresh: Callable[[], Size]) -> Dims | None:
    """Return the dimensions that operands are stretched to.

    Raises:
        ImpossibleError: two of them can't go together.
    """
    known = [dims for dims in shapes if dims is not None]
    if len(known) < len(shapes) or not known:
        return None
    rank = max(len(dims) for dims in known)
    padded = [(Size.number(1),) * (rank - len(dims)) + dims for dims in known]
    return tuple(_stretched(column, fresh) for column in zip(*padded, strict=True))


def _stretched(column: Iterable[Size], fresh: Callable[[], Size]) -> Size:
    wide = list(dict.fromkeys(size for size in column if size.as_int() != 1))
    if not wide:
        return Size.number(1)
    numbers = [size for size in wide if size.as_int() is not None]
    if len(numbers) > 1:
        raise ImpossibleError
    if numbers:
        return numbers[0]  # the others are this number or 1
    return wide[0] if len(wide) == 1 else fresh()


# ------------------------------------------------------------------------------------------------ the walk


def _walk(body: ir.Graph, facts: Facts) -> None:
    """Find the facts of a graph's nodes in order."""
    nodes = list(body)
    for index, node in enumerate(nodes):
        try:
            found = _step(node, facts)
        except ImpossibleError:
            found = []  # it fails at every run: nothing is claimed of what follows
        _keep(node, found, facts)
        if graph.is_op(node, "If") and facts.forks_left:
            _tell_branches_apart(node, nodes[index + 1 : index + 1 + _FORK_NODES], facts)


def _step(node: ir.Node, facts: Facts) -> list[Fact]:
    """Return the facts of a node's outputs."""
    if graph.is_op(node, "If"):
        return _if_facts(node, facts)
    for body in graph.bodies(node):
        for value in body.inputs:
            rank = facts.inferred.rank(value)
            facts.set(value, Fact(None if rank is None or node.op_type != "Scan" else facts.inferred_dims(value)))
        _walk(body, facts)
    rule = _RULES.get(node.op_type) if node.domain in graph.STANDARD_DOMAINS else None
    return [] if rule is None else rule(Step(node, facts))


def _keep(node: ir.Node, found: Sequence[Fact], facts: Facts) -> None:
    """Store facts, completed by what shape inference knows better."""
    for index, output in enumerate(node.outputs):
        fact = found[index] if index < len(found) else _UNKNOWN
        dims, other = fact.dims, facts.inferred_dims(output)
        if dims is None or other is None or len(dims) != len(other):
            dims = dims if dims is not None else other
        else:
            pairs = zip(dims, other, strict=True)
            dims = tuple(b if a.as_int() is None and b.as_int() is not None else a for a, b in pairs)
        if dims is not None:
            dims = tuple(d if d.is_tractable() else facts.fresh() for d in dims)
        content = fact.content
        if content is not None and not all(e is None or e.is_tractable() for e in content.elements):
            content = None
        facts.set(output, Fact(dims, content))


def _if_facts(node: ir.Node, facts: Facts) -> list[Fact]:
    """Walk both branches; their outputs are those of the one that is taken, or what both have in common."""
    branches = {name: node.attributes[name].as_graph() for name in ("then_branch", "else_branch")}
    for body in branches.values():
        _walk(body, facts)
    taken = taken_branch(node, facts)
    chosen = [branches[taken]] if taken else list(branches.values())
    return [_common([facts.of(body.outputs[index]) for body in chosen], facts) for index in range(len(node.outputs))]


def taken_branch(node: ir.Node, facts: Facts) -> str | None:
    """Return which branch of an If is taken at every run, None where that depends on the run."""
    content = facts.content(node.inputs[0])
    numbers = content.numbers() if content is not None else None
    return None if not numbers else ("then_branch" if numbers[0] else "else_branch")


def _common(found: Sequence[Fact], facts: Facts) -> Fact:
    """Return what holds for all of these facts."""
    if len(found) == 1:
        return found[0]
    shapes = [fact.dims for fact in found]
    dims: Dims | None = None
    ranks = {None if s is None else len(s) for s in shapes}
    if len(ranks) == 1 and None not in ranks:
        columns = zip(*(s for s in shapes if s is not None), strict=True)
        dims = tuple(c[0] if len(set(c)) == 1 else facts.fresh() for c in columns)
    contents = {fact.content for fact in found}
    return Fact(dims, contents.pop() if len(contents) == 1 else None)


def _tell_branches_apart(node: ir.Node, later: Sequence[ir.Node], facts: Facts) -> None:
    """Where the branches of an undecided If give other ranks, find the one after which later nodes don't fail.

    A node that is reached whenever the If is, and fails for one rank at every run, rules that rank out.
    """
    if taken_branch(node, facts) is not None:
        return
    for index, output in enumerate(node.outputs):
        options = [facts.of(node.attributes[n].as_graph().outputs[index]) for n in ("then_branch", "else_branch")]
        ranks = [None if option.dims is None else len(option.dims) for option in options]
        if None in ranks or ranks[0] == ranks[1] or facts.of(output).dims is not None or not facts.forks_left:
            continue
        facts.forks_left -= 1
        left = [option for option in options if _survives(output, option, later, facts)]
        if len(left) == 1:
            facts.set(output, Fact(left[0].dims))


def _survives(output: ir.Value, assumed: Fact, later: Sequence[ir.Node], facts: Facts) -> bool:
    """Say whether later nodes may run when `output` is as assumed; only what depends on it is looked at."""
    fork = facts.fork()
    fork.set(output, Fact(assumed.dims))
    touched = {output}
    try:
        for node in later:
            if not _reads(node, touched):
                continue
            _keep(node, _step(node, fork), fork)
            touched.update(node.outputs)
    except ImpossibleError:
        return False
    return True


def _reads(node: ir.Node, values: set[ir.Value]) -> bool:
    if any(value in values for value in node.inputs if value is not None):
        return True
    return any(_reads(inner, values) for body in graph.bodies(node) for inner in body)


# ----------------------------------------------------------------------------------------------- the rules


class Step:
    """A node and what is known of its inputs, for the rules."""

    def __init__(self, node: ir.Node, facts: Facts) -> None:
        self.node = node
        self.fresh = facts.fresh
        self._facts = facts

    def has(self, port: int) -> bool:
        """Say whether an optional input is there."""
        return port < len(self.node.inputs) and self.node.inputs[port] is not None

    def dims(self, port: int = 0) -> Dims | None:
        """Return the dimensions of an input."""
        return self._facts.dims(self.node.inputs[port]) if self.has(port) else None

    def content(self, port: int = 0) -> Content | None:
        """Return the elements of an input."""
        return self._facts.content(self.node.inputs[port]) if self.has(port) else None

    def integers(self, name: str, port: int, *, default: Sequence[int] | None = None) -> list[int] | None:
        """Return numbers that are an attribute in older opsets and an input in newer ones; None: not known."""
        if name in self.node.attributes or not self.has(port):
            return graph.integers(self.node, name, default=default)
        content = self.content(port)
        return None if content is None else content.numbers()

    def attribute(self, name: str, default: int) -> int:
        """Return a number that is an attribute."""
        return int(graph.attribute(self.node, name, default))

    @property
    def contents(self) -> list[Content | None]:
        """The elements of every input."""
        return [self.content(port) for port in range(len(self.node.inputs))]


_Rule = Callable[[Step], list[Fact]]


def _axis(axis: int, rank: int) -> int:
    """Return the axis counted from the front.

    Raises:
        ImpossibleError: there is no such axis.
    """
    if not -rank <= axis < rank:
        raise ImpossibleError
    return axis % rank if rank else 0


def _vector(elements: Iterable[Size | None], dtype: ir.DataType = ir.DataType.INT64) -> Content:
    items = tuple(elements)
    return Content(dtype, (len(items),), items)


def _with_content(content: Content | None, dims: Dims | None = None) -> list[Fact]:
    if content is None or len(content.elements) > MOST_ELEMENTS:
        return [Fact(dims)]
    return [Fact(tuple(Size.number(n) for n in content.shape), content)]


def _same(step: Step) -> list[Fact]:
    return [Fact(step.dims())]


def _copy(step: Step) -> list[Fact]:
    return [Fact(step.dims(), step.content())]


def _cast(step: Step) -> list[Fact]:
    content, to = step.content(), ir.DataType(step.attribute("to", 0))
    if content is None or to not in _INTEGERS:
        return [Fact(step.dims())]
    elements = tuple(_converted(e, to) for e in content.elements)
    return [Fact(step.dims(), Content(to, content.shape, elements))]


def _converted(element: Size | None, to: ir.DataType) -> Size | None:
    """Return an element in another type; sizes are taken to fit into 32 bits, as every index has to."""
    if element is None or to in (ir.DataType.INT64, ir.DataType.INT32):
        number = None if element is None else element.as_int()
        fits = number is None or to == ir.DataType.INT64 or -(2**31) <= number < 2**31
        return element if fits else None
    number = element.as_int()
    return None if number is None else Size.number(int(number != 0))


def _broadcast(step: Step) -> list[Fact]:
    return [Fact(broadcast([step.dims(port) for port in range(len(step.node.inputs))], step.fresh))]


def _elementwise(combine: Callable[..., Size | bool | None], *, to_bool: bool = False) -> _Rule:
    """Return the rule of an operator that combines its operands element by element."""

    def rule(step: Step) -> list[Fact]:
        dims = _broadcast(step)[0].dims
        contents = [c for c in step.contents if c is not None]
        if len(contents) < len(step.node.inputs) or not contents:
            return [Fact(dims)]
        try:
            shape = np.broadcast_shapes(*(c.shape for c in contents))
        except ValueError as error:
            raise ImpossibleError from error
        if int(np.prod(shape)) > MOST_ELEMENTS:
            return [Fact(dims)]
        columns = [_spread(c, shape) for c in contents]
        dtype = ir.DataType.BOOL if to_bool else contents[-1].dtype
        combined = (_combined(combine, column) for column in zip(*columns, strict=True))
        elements = tuple(_converted(e, dtype) for e in combined)
        return _with_content(Content(dtype, shape, elements))

    return rule


def _combined(combine: Callable[..., Size | bool | None], column: Sequence[Size | None]) -> Size | None:
    if any(item is None for item in column):
        return None
    made = combine(*column)
    return Size.number(int(made)) if isinstance(made, bool) else made


def _spread(content: Content, shape: tuple[int, ...]) -> list[Size | None]:
    """Return the elements of a tensor that is stretched to `shape`."""
    indices = np.arange(len(content.elements)).reshape(content.shape)
    return [content.elements[i] for i in np.broadcast_to(indices, shape).reshape(-1)]


def _choose(condition: Size, x: Size, y: Size) -> Size | None:
    number = condition.as_int()
    return (x if x == y else None) if number is None else x if number else y


def _where(step: Step) -> list[Fact]:
    if step.content(1) is None or step.content(2) is None:
        return _broadcast(step)
    return _elementwise(_choose)(step)


def _and(a: Size, b: Size) -> Size | None:
    x, y = a.as_int(), b.as_int()
    if x == 0 or y == 0:
        return Size.number(0)
    return None if x is None or y is None else Size.number(1)


def _or(a: Size, b: Size) -> Size | None:
    x, y = a.as_int(), b.as_int()
    if x == 1 or y == 1:
        return Size.number(1)
    return None if x is None or y is None else Size.number(0)


def _not(a: Size) -> Size | None:
    number = a.as_int()
    return None if number is None else Size.number(1 - number)


def _not_less(a: Size, b: Size) -> bool | None:
    answer = sizes.less(a, b)
    return None if answer is None else not answer


def _fold_left(combine: Callable[[Size, Size], Size | None]) -> Callable[..., Size | None]:
    """Return a function of any number of operands from one of two."""

    def of_many(first: Size, *others: Size) -> Size | None:
        total: Size | None = first
        for other in others:
            total = None if total is None else combine(total, other)
        return total

    return of_many


def _remainder(a: Size, b: Size) -> Size | None:
    return sizes.remainder(a, b)


def _shape(step: Step) -> list[Fact]:
    dims = step.dims()
    if dims is None:
        return [_UNKNOWN]
    end = graph.attribute(step.node, "end")
    part = dims[slice(step.attribute("start", 0), None if end is None else int(end))]
    return _with_content(_vector(part))


def _size(step: Step) -> list[Fact]:
    dims = step.dims()
    total = None if dims is None else sizes.product(dims)
    return _with_content(Content(ir.DataType.INT64, (), (total,))) if total is not None else [Fact(())]


def _gather(step: Step) -> list[Fact]:
    data, indices = step.dims(0), step.dims(1)
    if data is None or indices is None:
        return [_UNKNOWN]
    axis = _axis(step.attribute("axis", 0), len(data))
    dims = data[:axis] + indices + data[axis + 1 :]
    content, at = step.content(0), step.content(1)
    wanted = at.numbers() if at is not None else None
    if content is None or wanted is None or at is None or len(content.shape) != 1:
        return [Fact(dims)]
    count = len(content.elements)
    if not all(-count <= n < count for n in wanted):
        raise ImpossibleError
    return _with_content(Content(content.dtype, at.shape, tuple(content.elements[n] for n in wanted)))


def _concat(step: Step) -> list[Fact]:
    shapes = [step.dims(port) for port in range(len(step.node.inputs))]
    contents = [c for c in step.contents if c is not None]
    if len(contents) == len(shapes) and all(len(c.shape) == 1 for c in contents):
        return _with_content(_vector((e for c in contents for e in c.elements), contents[0].dtype))
    known = [dims for dims in shapes if dims is not None]
    if len(known) < len(shapes) or len({len(dims) for dims in known}) != 1:
        if len({len(dims) for dims in known}) > 1:
            raise ImpossibleError
        return [_UNKNOWN]
    axis = _axis(step.attribute("axis", 0), len(known[0]))
    total = Size.number(0)
    for one in known:
        total = total + one[axis]
    merged = [next((s for s in column if s.as_int() is not None), column[0]) for column in zip(*known, strict=True)]
    merged[axis] = total
    return [Fact(tuple(merged))]


def _unsqueeze(step: Step) -> list[Fact]:
    dims, axes = step.dims(), step.integers("axes", 1)
    if dims is None or axes is None:
        return [_UNKNOWN]
    rank = len(dims) + len(axes)
    places = {_axis(axis, rank) for axis in axes}
    rest = iter(dims)
    made = tuple(Size.number(1) if i in places else next(rest) for i in range(rank))
    return [Fact(made, _reshaped(step.content(), made))]


def _squeeze(step: Step) -> list[Fact]:
    dims = step.dims()
    if dims is None:
        return [_UNKNOWN]
    axes = step.integers("axes", 1, default=())
    if axes is None or (not axes and not all(d.as_int() is not None for d in dims)):
        return [_UNKNOWN]
    places = {_axis(a, len(dims)) for a in axes} or {i for i, d in enumerate(dims) if d.as_int() == 1}
    if any(sizes.equal(dims[i], Size.number(1)) is False for i in places):
        raise ImpossibleError
    made = tuple(d for i, d in enumerate(dims) if i not in places)
    return [Fact(made, _reshaped(step.content(), made))]


def _reshaped(content: Content | None, dims: Dims) -> Content | None:
    shape = [d.as_int() for d in dims]
    if content is None or None in shape:
        return None
    return Content(content.dtype, tuple(n for n in shape if n is not None), content.elements)


def _reshape(step: Step) -> list[Fact]:
    target = step.content(1) if step.has(1) else _attribute_vector(step.node, "shape")
    if target is None:
        count = step.dims(1)
        rank = count[0].as_int() if count else None
        return [Fact(None if rank is None else tuple(step.fresh() for _ in range(rank)))]
    dims = reshaped_dims(step.dims(), target, keeps_zero=bool(step.attribute("allowzero", 0)), fresh=step.fresh)
    return [Fact(dims, _reshaped(step.content(), dims))]


def _attribute_vector(node: ir.Node, name: str) -> Content | None:
    numbers = graph.integers(node, name)
    return None if numbers is None else _vector(Size.number(n) for n in numbers)


def reshaped_dims(data: Dims | None, target: Content, *, keeps_zero: bool, fresh: Callable[[], Size]) -> Dims:
    """Return the dimensions that Reshape makes of `data` for a target (0: as in the input, -1: what is left)."""
    made: list[Size | None] = []
    for index, element in enumerate(target.elements):
        number = None if element is None else element.as_int()
        if element is None or number == -1:
            made.append(None)
        elif number == 0 and not keeps_zero:
            if data is not None and index >= len(data):
                raise ImpossibleError
            made.append(fresh() if data is None else data[index])
        else:
            made.append(element)
    if made.count(None) == 1 and data is not None:
        rest = sizes.product(tuple(size for size in made if size is not None))
        left = sizes.product(data).divided(rest) if rest.is_tractable() else None
        if left is None and rest.as_int() is not None and sizes.product(data).as_int() is not None:
            raise ImpossibleError
        made[made.index(None)] = left if left is not None and left.is_tractable() else fresh()
    return tuple(fresh() if size is None else size for size in made)


def _flatten(step: Step) -> list[Fact]:
    dims = step.dims()
    if dims is None:
        return [Fact((step.fresh(), step.fresh()))]
    axis = step.attribute("axis", 1)
    axis = axis + len(dims) if axis < 0 else axis
    return [Fact((sizes.product(dims[:axis]), sizes.product(dims[axis:])))]


def _transpose(step: Step) -> list[Fact]:
    dims = step.dims()
    if dims is None:
        return [_UNKNOWN]
    perm = graph.attribute(step.node, "perm", tuple(reversed(range(len(dims)))))
    if len(perm) != len(dims):
        raise ImpossibleError
    return [Fact(tuple(dims[i] for i in perm), step.content() if len(dims) < 2 else None)]


def _slice(step: Step) -> list[Fact]:
    bounds = slice_bounds(step.node, step.content)
    dims = step.dims()
    if bounds is None or dims is None:
        return [Fact(None if dims is None else tuple(step.fresh() for _ in dims))]
    made = list(dims)
    content = step.content()
    for axis, (start, end, stride) in bounds.items():
        place = _axis(axis, len(dims))
        made[place] = _sliced(dims[place], start, end, stride) or step.fresh()
        number, first, last = dims[place].as_int(), _as_int(start), _as_int(end)
        if content is None or len(content.shape) != 1 or number is None or first is None or last is None or not stride:
            content = None
        else:
            content = _vector(content.elements[_python_slice(first, last, stride)], content.dtype)
    return _with_content(content, tuple(made)) if content is not None else [Fact(tuple(made))]


def slice_bounds(
    node: ir.Node, content: Callable[[int], Content | None]
) -> dict[int, tuple[Size | None, Size | None, int | None]] | None:
    """Return axis -> (start, end, step) of a Slice, None where the axes are not known."""
    if "starts" in node.attributes:
        starts, ends = _attribute_vector(node, "starts"), _attribute_vector(node, "ends")
        axes, steps = _attribute_vector(node, "axes"), None
        has_axes, has_steps = axes is not None, False
    else:
        starts, ends = content(1), content(2)
        has_axes, has_steps = (p < len(node.inputs) and node.inputs[p] is not None for p in (3, 4))
        axes, steps = (content(3) if has_axes else None), (content(4) if has_steps else None)
    one = starts if starts is not None else ends if ends is not None else axes
    if one is None or (has_axes and axes is None):
        return None
    count = len(one.elements)
    places = list(range(count)) if axes is None else axes.numbers()
    if places is None or len(places) != count:
        return None
    nothing: tuple[Size | None, ...] = (None,) * count
    strides: list[int | None] = [1] * count
    if has_steps:
        strides = [None if e is None else e.as_int() for e in steps.elements] if steps is not None else [None] * count
    begin = starts.elements if starts is not None else nothing
    until = ends.elements if ends is not None else nothing
    return {axis: (begin[i], until[i], strides[i]) for i, axis in enumerate(places)}


def _as_int(size: Size | None) -> int | None:
    return None if size is None else size.as_int()


def _python_slice(start: int, end: int, stride: int) -> slice:
    """Return the slice as Python counts it: an end before the first element is open when going backwards."""
    return slice(start, None if stride < 0 and end < -FAR + 1 else end, stride)


def reaches_end(end: Size | None, dim: Size) -> bool:
    """Say whether a slice that ends at `end` takes everything up to the last element."""
    number = _as_int(end)
    if end is None:
        return False
    return (number is not None and number >= FAR) or (end - dim).at_least(0)


def _sliced(dim: Size, start: Size | None, end: Size | None, stride: int | None) -> Size | None:
    """Return how many elements of an axis a slice takes, None where that is not known."""
    first, last, size = _as_int(start), _as_int(end), dim.as_int()
    if stride is None or start is None or end is None:
        return None
    if size is not None and first is not None and last is not None:
        return Size.number(len(range(size)[_python_slice(first, last, stride)]))
    if stride != 1:
        return None
    if first == 0:
        if reaches_end(end, dim):
            return dim
        return sizes.least(end, dim) if end.at_least(0) else None
    if first is not None and first > 0 and reaches_end(end, dim):
        return dim - first if dim.at_least(first) else None
    return None


def _split(step: Step) -> list[Fact]:
    dims = step.dims()
    if dims is None:
        return []
    axis, count = _axis(step.attribute("axis", 0), len(dims)), len(step.node.outputs)
    whole = dims[axis].as_int()
    lengths: list[Size | None]
    if "split" in step.node.attributes or step.has(1):
        content = step.content(1) if step.has(1) else _attribute_vector(step.node, "split")
        lengths = list(content.elements) if content is not None else [None] * count
    elif whole is not None:
        part = -(-whole // count)
        lengths = [Size.number(max(0, min(part, whole - part * i))) for i in range(count)]
    else:
        lengths = [dims[axis].divided(Size.number(count))] * count
    if len(lengths) != count:
        raise ImpossibleError
    parts = [step.fresh() if n is None else n for n in lengths]
    return [Fact((*dims[:axis], part, *dims[axis + 1 :])) for part in parts]


def _expand(step: Step) -> list[Fact]:
    target = step.content(1)
    if target is None or any(e is None or (_as_int(e) or 0) < 0 for e in target.elements):
        return [_UNKNOWN]
    wanted = tuple(e for e in target.elements if e is not None)
    dims = broadcast([step.dims(), wanted], step.fresh)
    shape = [] if dims is None else [d.as_int() for d in dims]
    content = step.content()
    if content is None or dims is None or None in shape:
        return [Fact(dims)]
    fixed = tuple(n for n in shape if n is not None)
    if int(np.prod(fixed, dtype=np.int64)) > MOST_ELEMENTS:
        return [Fact(dims)]
    return _with_content(Content(content.dtype, fixed, tuple(_spread(content, fixed))))


def _constant_of_shape(step: Step) -> list[Fact]:
    target = step.content()
    if target is None or any(e is None for e in target.elements):
        return [_UNKNOWN]
    dims = tuple(e for e in target.elements if e is not None)
    tensor = graph.attribute(step.node, "value")
    shape = target.numbers()
    if tensor is None or tensor.dtype not in _INTEGERS or shape is None:
        return [Fact(dims)]
    count = int(np.prod(shape, dtype=np.int64))
    if not 0 <= count <= MOST_ELEMENTS:
        return [Fact(dims)]
    element = Size.number(int(tensor.numpy().reshape(-1)[0]))
    return _with_content(Content(tensor.dtype, tuple(shape), (element,) * count))


def _range(step: Step) -> list[Fact]:
    ends = [step.content(port) for port in range(3)]
    if any(c is None or len(c.elements) != 1 for c in ends):
        return [Fact((step.fresh(),))]
    start, limit, delta = (c.elements[0] for c in ends if c is not None)
    if start is None or limit is None or delta is None:
        return [Fact((step.fresh(),))]
    first, last, stride = start.as_int(), limit.as_int(), delta.as_int()
    dtype = ends[0].dtype if ends[0] is not None else ir.DataType.INT64
    if first is not None and last is not None and stride:
        numbers = range(first, last, stride)
        dims = (Size.number(len(numbers)),)
        return _with_content(_vector(map(Size.number, numbers), dtype)) if len(numbers) <= 256 else [Fact(dims)]
    length = limit - start
    return [Fact((length if stride == 1 and length.at_least(0) else step.fresh(),))]


def _matmul(step: Step) -> list[Fact]:
    a, b = step.dims(0), step.dims(1)
    if a is None or b is None:
        return [_UNKNOWN]
    if not a or not b or sizes.equal(a[-1], b[-2] if len(b) > 1 else b[-1]) is False:
        raise ImpossibleError
    batch = broadcast([a[:-2], b[:-2]], step.fresh)
    rows, columns = a[-2:-1], (b[-1:] if len(b) > 1 else ())
    return [Fact(None if batch is None else batch + rows + columns)]


def _reduce_all(combine: Callable[[Size, Size], Size]) -> _Rule:
    """Return the rule of a reduction, which follows the elements of a vector that is reduced as a whole."""

    def rule(step: Step) -> list[Fact]:
        dims, axes = step.dims(), step.integers("axes", 1, default=())
        if dims is None or axes is None:
            return [_UNKNOWN]
        if not axes and step.attribute("noop_with_empty_axes", 0):
            return _copy(step)
        places = {_axis(axis, len(dims)) for axis in axes} or set(range(len(dims)))
        keep = bool(step.attribute("keepdims", 1))
        made = tuple(Size.number(1) if i in places else d for i, d in enumerate(dims) if keep or i not in places)
        content = step.content()
        if content is None or len(content.shape) != 1 or not content.elements or None in content.elements:
            return [Fact(made)]
        elements = [e for e in content.elements if e is not None]
        total = elements[0]
        for element in elements[1:]:
            total = combine(total, element)
        return _with_content(Content(content.dtype, (1,) if keep else (), (total,)))

    return rule


def _recurrent(step: Step) -> list[Fact]:
    dims = step.dims()
    if dims is not None and len(dims) != 3:
        raise ImpossibleError
    return []


def _convolution(step: Step) -> list[Fact]:
    data, weight = step.dims(0), step.dims(1)
    if data is not None and weight is not None and len(data) != len(weight):
        raise ImpossibleError
    return []


_SAME_SHAPE = (
    *("Abs", "Acos", "Asin", "Atan", "BatchNormalization", "Ceil", "Celu", "Clip", "Cos", "CumSum"),
    *("DequantizeLinear", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "HardTanh"),
    *("GroupNormalization", "InstanceNormalization", "IsInf", "IsNaN", "LayerNormalization", "LeakyRelu", "Log"),
    *("LogSoftmax", "LpNormalization", "LRN", "Mish", "QuantizeLinear", "Reciprocal", "Relu", "RMSNormalization"),
    *("Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softmax", "Softplus", "Softsign", "Sqrt", "Tan"),
    *("Tanh", "ThresholdedRelu", "Trilu", "CastLike"),
)

_RULES: Mapping[str, _Rule] = {
    **dict.fromkeys(_SAME_SHAPE, _same),
    **dict.fromkeys(("Pow", "Sum", "Mean", "Xor"), _broadcast),
    "Identity": _copy,
    "Cast": _cast,
    "Neg": _elementwise(lambda a: a * -1),
    "Add": _elementwise(lambda a, b: a + b),
    "Sub": _elementwise(lambda a, b: a - b),
    "Mul": _elementwise(lambda a, b: a * b),
    "Div": _elementwise(sizes.quotient),
    "Mod": _elementwise(_remainder),
    "Min": _elementwise(_fold_left(sizes.least)),
    "Max": _elementwise(_fold_left(sizes.greatest)),
    "Equal": _elementwise(sizes.equal, to_bool=True),
    "Less": _elementwise(sizes.less, to_bool=True),
    "Greater": _elementwise(lambda a, b: sizes.less(b, a), to_bool=True),
    "LessOrEqual": _elementwise(lambda a, b: _not_less(b, a), to_bool=True),
    "GreaterOrEqual": _elementwise(_not_less, to_bool=True),
    "And": _elementwise(_and, to_bool=True),
    "Or": _elementwise(_or, to_bool=True),
    "Not": _elementwise(_not, to_bool=True),
    "Where": _where,
    "Shape": _shape,
    "Size": _size,
    "Gather": _gather,
    "Concat": _concat,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Slice": _slice,
    "Split": _split,
    "Expand": _expand,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "MatMul": _matmul,
    "ReduceProd": _reduce_all(lambda a, b: a * b),
    "ReduceSum": _reduce_all(lambda a, b: a + b),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    **dict.fromkeys(("Conv", "ConvTranspose"), _convolution),
}
"""Operator of the standard domain -> the facts of its outputs."""
