"""Vectors of 16 floats inside numba kernels: LLVM's ``<16 x float>`` with Python's operators.

One vector is one AVX-512 register; on machines with narrower registers LLVM splits every operation, so the same
kernels run everywhere. Arithmetic carries LLVM's ``fast`` flags: multiply-adds fuse, and no value may be NaN or
infinite. Tiles are 8 pixels wide, so that one vector covers two rows of eight: see ``lane_x`` and ``lane_y``.
"""

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

LANES = 16

_FLOAT, _INT = ir.FloatType(), ir.IntType(32)
_VECTOR, _INTS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_INT, LANES)
_BITS = ir.VectorType(ir.IntType(1), LANES)
_FAST = ("fast",)

# Numba's fastmath pass rewrites only instructions without flags, and LLVM must not cancel (t + magic) - magic.
_EXACT = ("nnan",)

# Least-squares fit of 2^f on [-0.5, 0.5]; relative error 8e-8, about one rounding of float32.
_EXP2 = (1.0000000710, 0.6931469492, 0.2402212175, 0.0555074262, 0.0096754597, 0.0013266970)
_ROUND = 12582912.0  # 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits


class _Vector(types.Type):
    def __init__(self) -> None:
        super().__init__("float32x16")


class _Mask(types.Type):
    def __init__(self) -> None:
        super().__init__("bool1x16")


vector, mask = _Vector(), _Mask()


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _VECTOR)


@register_model(_Mask)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _BITS)


def _splat(builder: Any, scalar: Any) -> Any:
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(_INT, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(_INTS, [0] * LANES))


def _constant(value: float) -> Any:
    return ir.Constant(_VECTOR, [ir.Constant(_FLOAT, value)] * LANES)


def _integers(value: int) -> Any:
    return ir.Constant(_INTS, [ir.Constant(_INT, value)] * LANES)


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


def _vector_at(builder: Any, address: Any) -> Any:
    return builder.bitcast(address, _VECTOR.as_pointer())


def _define(op: Any, emit: Callable[[Any, Any, Any], Any], result: types.Type, operand: types.Type = vector) -> None:
    """Let a Python operator work on two vectors, or on a vector and a float32 in either order."""
    pairs = [(operand, operand)]
    if operand is vector:
        pairs += [(vector, types.float32), (types.float32, vector)]

    class Template(ConcreteTemplate):
        cases = [signature(result, *pair) for pair in pairs]  # noqa: RUF012

    infer_global(op)(Template)

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        left, right = (_splat(builder, a) if t is types.float32 else a for t, a in zip(sig.args, args))
        return emit(builder, left, right)

    for pair in pairs:
        lower_builtin(op, *pair)(lower)


_define(operator.add, lambda b, x, y: b.fadd(x, y, flags=_FAST), vector)
_define(operator.sub, lambda b, x, y: b.fsub(x, y, flags=_FAST), vector)
_define(operator.mul, lambda b, x, y: b.fmul(x, y, flags=_FAST), vector)
_define(operator.truediv, lambda b, x, y: b.fdiv(x, y, flags=_FAST), vector)
_define(operator.ge, lambda b, x, y: b.fcmp_ordered(">=", x, y, flags=_FAST), mask)
_define(operator.gt, lambda b, x, y: b.fcmp_ordered(">", x, y, flags=_FAST), mask)
_define(operator.le, lambda b, x, y: b.fcmp_ordered("<=", x, y, flags=_FAST), mask)
_define(operator.and_, lambda b, x, y: b.and_(x, y), mask, mask)


@intrinsic
def broadcast(typing: Any, scalar: Any) -> Any:
    """All lanes equal to one float32."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _splat(builder, args[0])

    return vector(types.float32), emit


@intrinsic
def lane_x(typing: Any) -> Any:
    """Column of each lane within a tile 8 wide: 0..7, 0..7."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return ir.Constant(_VECTOR, [ir.Constant(_FLOAT, float(lane % 8)) for lane in range(LANES)])

    return vector(), emit


@intrinsic
def lane_y(typing: Any) -> Any:
    """Row of each lane within a pair of rows: eight times 0, eight times 1."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return ir.Constant(_VECTOR, [ir.Constant(_FLOAT, float(lane // 8)) for lane in range(LANES)])

    return vector(), emit


@intrinsic
def load(typing: Any, array: Any, index: Any) -> Any:
    """16 consecutive floats of a contiguous array from a flat index, unchecked."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        loaded = builder.load(_vector_at(builder, _address(context, builder, sig.args[0], *args)))
        loaded.align = 4
        return loaded

    return vector(array, types.intp), emit


@intrinsic
def store(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Write 16 consecutive floats of a contiguous array from a flat index, unchecked."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address = _address(context, builder, sig.args[0], args[0], args[1])
        builder.store(args[2], _vector_at(builder, address)).align = 4
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), emit


@intrinsic
def load_scalar(typing: Any, array: Any, index: Any) -> Any:
    """One element of a contiguous array at a flat index, unchecked."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_address(context, builder, sig.args[0], *args))

    return array.dtype(array, types.intp), emit


@intrinsic
def prefetch(typing: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of a flat index ahead of its use."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address = builder.bitcast(_address(context, builder, sig.args[0], *args), ir.IntType(8).as_pointer())
        name = "llvm.prefetch.p0"
        function = builder.module.globals.get(name) or ir.Function(
            builder.module, ir.FunctionType(ir.VoidType(), [address.type, _INT, _INT, _INT]), name
        )
        builder.call(function, [address, _INT(0), _INT(3), _INT(1)])  # to read, to keep, data
        return context.get_dummy_value()

    return types.void(array, types.intp), emit


@intrinsic
def select(typing: Any, condition: Any, yes: Any, no: Any) -> Any:
    """Lane by lane: yes where the mask is set, no elsewhere."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(*args)

    return vector(mask, vector, vector), emit


@intrinsic
def minus_abs(typing: Any, x: Any) -> Any:
    """-|x|, by setting the sign bit."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], _INTS)
        return builder.bitcast(builder.or_(bits, _integers(-(2**31))), _VECTOR)

    return vector(vector), emit


@intrinsic
def any_lane(typing: Any, condition: Any) -> Any:
    """Whether the mask is set in any lane."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = ir.IntType(LANES)
        return builder.icmp_unsigned("!=", builder.bitcast(args[0], bits), bits(0))

    return types.boolean(mask), emit


@intrinsic
def sum_lanes(typing: Any, x: Any) -> Any:
    """The sum of the 16 lanes, as a tree (the same on every run)."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        total = args[0]
        for half in (8, 4, 2, 1):
            order = ir.Constant(_INTS, [(lane + half) % LANES for lane in range(LANES)])
            total = builder.fadd(total, builder.shuffle_vector(total, total, order), flags=_FAST)
        return builder.extract_element(total, _INT(0))

    return types.float32(vector), emit


@intrinsic
def exp2(typing: Any, t: Any) -> Any:
    """2^t for |t| < 126: the nearest integer goes into the exponent bits, a polynomial covers the rest."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        (t,) = args
        rounded = builder.fadd(t, _constant(_ROUND), flags=_EXACT)
        fraction = builder.fsub(t, builder.fsub(rounded, _constant(_ROUND), flags=_EXACT), flags=_FAST)
        power = _constant(_EXP2[-1])
        for coefficient in _EXP2[-2::-1]:
            power = builder.fadd(builder.fmul(power, fraction, flags=_FAST), _constant(coefficient), flags=_FAST)
        exponent = builder.shl(builder.bitcast(rounded, _INTS), _integers(23))
        return builder.bitcast(builder.add(builder.bitcast(power, _INTS), exponent), _VECTOR)

    return vector(vector), emit
