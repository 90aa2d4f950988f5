"""A calculator for programs that a model wrote: assignments and arithmetic, walked on Python's own syntax tree.

Nothing is ever executed. What is not on the list below is refused, and so is whatever is large, deep or long. Numbers
are exact fractions, so 0.1 + 0.2 is 0.3 and nothing overflows in silence.
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from llmlab.errors import Refused

WHO = "The program"


@dataclass(frozen=True)
class Caps:
    """What a program may use: characters, open brackets and signs in a row, digits of a number (above and below the
    line), size of an exponent, steps."""

    length: int = 2000
    depth: int = 30
    digits: int = 40
    exponent: int = 64
    steps: int = 500


CAPS = Caps()
BINARY: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction | int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
UNARY: dict[type[ast.unaryop], Callable[[Fraction], Fraction]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


def run(program: str, names: Mapping[str, Fraction] | None = None, caps: Caps = CAPS) -> dict[str, Fraction]:
    """The names that a program assigns, in the order of their first assignment, with their last values.

    `names` are known beforehand. Raises Refused for anything but assignments of arithmetic within the caps.
    """
    known, assigned = dict(names or {}), dict[str, Fraction]()
    walk = _Walk(known, caps)
    for statement in parsed(program, caps).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                result = walk.value(value)
            case ast.AugAssign(target=ast.Name(id=name) as target, op=op, value=value):
                result = walk.value(ast.BinOp(ast.Name(target.id, ast.Load()), op, value))
            case _:
                raise _refused(f"holds {_kind(statement)}", "Write assignments only")
        known[name] = assigned[name] = result
    return assigned


def value(expression: str, names: Mapping[str, Fraction] | None = None, caps: Caps = CAPS) -> Fraction:
    """What one expression is worth. Raises Refused as `run` does."""
    match parsed(expression, caps).body:
        case [ast.Expr(value=tree)]:
            return _Walk(dict(names or {}), caps).value(tree)
    raise _refused("is not one expression", "Write one")


def parsed(text: str, caps: Caps = CAPS) -> ast.Module:
    """The syntax tree. Raises Refused for text that is no Python, too long or too deep."""
    if len(text) > caps.length:
        raise _refused(f"has more than {caps.length} characters", "Shorten it")
    if not text.isascii():
        raise _refused("holds characters that are not ASCII", "Write plain letters and digits")
    # Python's parser may fall over at deep nesting before anybody can look at the tree: depth is bounded in the text.
    open_now = signs = 0
    for c in text:
        open_now += (c in "([{") - (c in ")]}")
        signs = 0 if c.isalnum() else signs + (c in "+-~*")
        if open_now > caps.depth or signs > caps.depth:
            raise _refused(f"is nested more than {caps.depth} deep", "Write shorter steps")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text.strip())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        raise _refused("is not Python", "Write assignments such as x = 3 * 4") from e


class _Walk:
    def __init__(self, names: dict[str, Fraction], caps: Caps) -> None:
        self.names, self.caps, self.left = names, caps, caps.steps

    def value(self, tree: ast.expr, depth: int = 0) -> Fraction:
        self.left -= 1
        if self.left < 0:
            raise _refused(f"takes more than {self.caps.steps} steps", "Shorten it")
        if depth > 4 * self.caps.depth:
            raise _refused(f"is nested more than {4 * self.caps.depth} deep", "Write shorter steps")
        match tree:
            case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
                return self._number(number)
            case ast.Name(id=name):
                if name not in self.names:
                    raise _refused(f"uses {name[:40]!r} before it has a value", "Assign it first")
                return self.names[name]
            case ast.UnaryOp(op=op, operand=operand) if type(op) in UNARY:
                return UNARY[type(op)](self.value(operand, depth + 1))
            case ast.BinOp(left=left, op=op, right=right):
                return self._binary(op, self.value(left, depth + 1), self.value(right, depth + 1))
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
                return self._call(name, [self.value(a, depth + 1) for a in args])
        raise _refused(f"holds {_kind(tree)}", "Use numbers, names and + - * / // % ** only")

    def _number(self, number: int | float) -> Fraction:
        try:
            # A float's shortest text is what was written: 0.1 is a tenth, not the nearest binary number.
            return self._kept(Fraction(number) if isinstance(number, int) else Fraction(repr(number)))
        except ValueError as e:
            raise _refused("holds a number that is not finite", "Use smaller numbers") from e

    def _binary(self, op: ast.operator, a: Fraction, b: Fraction) -> Fraction:
        if isinstance(op, ast.Pow):
            return self._power(a, b)
        if type(op) not in BINARY:
            raise _refused(f"holds {_kind(op)}", "Use + - * / // % ** only")
        try:
            return self._kept(Fraction(BINARY[type(op)](a, b)))
        except ZeroDivisionError as e:
            raise _refused("divides by zero", "Check its numbers") from e

    def _power(self, a: Fraction, b: Fraction) -> Fraction:
        if b.denominator != 1 or abs(b) > self.caps.exponent:
            raise _refused(f"has an exponent that is not a whole number up to {self.caps.exponent}", "Multiply instead")
        # Bits multiply with the exponent: known before a single product is made.
        bits = max(abs(a.numerator).bit_length(), a.denominator.bit_length()) - 1
        if bits * abs(int(b)) > 4 * self.caps.digits:
            raise self._large()
        if a == 0 and b < 0:
            raise _refused("divides by zero", "Check its numbers")
        return self._kept(Fraction(a ** int(b)))

    def _call(self, name: str, args: list[Fraction]) -> Fraction:
        match name, args:
            case "abs", [a]:
                return abs(a)
            case "round", [a]:
                return Fraction(round(a))
            case "round", [a, n] if n.denominator == 1 and abs(n) <= self.caps.digits:
                return self._kept(Fraction(round(a, int(n))))
            case (("min" | "max"), [_, _, *_]):
                return min(args) if name == "min" else max(args)
        raise _refused(f"calls {name[:40]!r} with {len(args)} values", "Only min, max, abs and round may be called")

    def _kept(self, number: Fraction) -> Fraction:
        if max(abs(number.numerator), number.denominator) >= 10**self.caps.digits:
            raise self._large()
        return number

    def _large(self) -> Refused:
        return _refused(f"makes a number of more than {self.caps.digits} digits", "Use smaller numbers")


def _kind(node: ast.AST) -> str:
    return f"a {type(node).__name__}"


def _refused(why: str, now: str) -> Refused:
    return Refused(WHO, why, now)
