"""A head with FLAME's counts and none of FLAME's content: a tube of random bases, as a pickle of Python 2."""

import io
import pickle
import struct
import sys
import types
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import scipy.sparse

VERTICES, FACES = 5023, 9976  # FLAME's
_RINGS, _AROUND, _LOOSE = 173, 29, 6  # 173 * 29 + 6 vertices, 2 * 172 * 29 faces
PARENTS = np.array([2**32 - 1, 0, 1, 1, 1])


def flame_like(seed: int = 0, shape_codes: int = 300, expression_codes: int = 100, rings: int = _RINGS) -> dict:
    """The arrays of a FLAME pickle, plus vt and ft (the unwrap, which FLAME keeps elsewhere).

    With ``rings`` fewer, a small head of ``rings * 29 + 6`` vertices.
    """
    rng = np.random.default_rng(seed)
    ring, around = np.meshgrid(np.arange(rings), np.arange(_AROUND), indexing="ij")
    angle, height = 2 * np.pi * around / _AROUND, ring / (rings - 1)
    tube = np.stack([0.08 * np.sin(angle), 0.25 * height - 0.12, 0.08 * np.cos(angle)], -1).reshape(-1, 3)
    loose = np.tile([0.0, 0.15, 0.0], (_LOOSE, 1))
    template = np.concatenate([tube, loose])
    v = len(template)

    def corners(columns: int, wrap: int) -> np.ndarray:
        i, j = np.meshgrid(np.arange(rings - 1), np.arange(_AROUND), indexing="ij")
        a, b = i * columns + j, i * columns + (j + 1) % wrap
        c, d = a + columns, b + columns
        return np.stack([np.stack([a, b, d], -1), np.stack([a, d, c], -1)], 2).reshape(-1, 3)

    unwrapped_ring, unwrapped = np.meshgrid(np.arange(rings), np.arange(_AROUND + 1), indexing="ij")
    uv = np.stack([unwrapped / _AROUND, unwrapped_ring / (rings - 1)], -1).reshape(-1, 2) * 0.9 + 0.05
    joints = np.array([[0, -0.1, 0], [0, -0.05, 0], [0, 0, 0.02], [0.03, 0.05, 0.07], [-0.03, 0.05, 0.07]])
    regressor = np.zeros((5, v))
    for j, joint in enumerate(joints):
        nearest = np.argsort(np.linalg.norm(template - joint, axis=1))[:20]
        regressor[j, nearest] = rng.dirichlet(np.ones(20))
    weights = rng.dirichlet(np.full(5, 0.5), v)
    return {
        "v_template": template,
        "f": corners(_AROUND, _AROUND).astype(np.uint32),
        "shapedirs": rng.normal(0, 2e-3, (v, 3, shape_codes + expression_codes)),
        "posedirs": rng.normal(0, 1e-3, (v, 3, 36)),
        "J_regressor": regressor,
        "weights": weights,
        "kintree_table": np.stack([PARENTS, np.arange(5)]),
        "vt": uv,
        "ft": corners(_AROUND + 1, _AROUND + 1),
    }


def write_flame_pickle(path: Path, arrays: dict, python2: bool = True, chumpy: bool = True, protocol: int = 2) -> Path:
    """As FLAME's authors did: bases as chumpy arrays, the regressor sparse, everything by Python 2."""
    content = {name: array for name, array in arrays.items() if name not in ("vt", "ft")}
    content["J_regressor"] = scipy.sparse.csc_matrix(arrays["J_regressor"])
    content["bs_style"], content["bs_type"] = "lbs", "lrotmin"
    with fake_chumpy() as fake:
        if chumpy:
            content["shapedirs"] = fake.Ch(content["shapedirs"])
            content["J"] = fake.dot(a=fake.Ch(np.zeros((5, 3))), b=fake.Ch(np.zeros((3, 3))))  # never read
        path.write_bytes(dumps_python2(content, protocol) if python2 else pickle.dumps(content, protocol))
    return path


def write_template_obj(path: Path, arrays: dict, extra_faces: np.ndarray | None = None) -> Path:
    """FLAME's template OBJ; ``extra_faces`` follow without UV, as those of a teeth patch."""
    lines = [f"v {x} {y} {z}" for x, y, z in arrays["v_template"]]
    if extra_faces is not None:
        lines += ["v 0 0 0"] * (int(extra_faces.max()) + 1 - len(arrays["v_template"]))
    lines += [f"vt {u:.9f} {v:.9f}" for u, v in arrays["vt"]]
    for f, t in zip(arrays["f"].astype(int), arrays["ft"]):
        lines.append("f " + " ".join(f"{a + 1}/{b + 1}/1" for a, b in zip(f, t)))
    lines += [f"f {a + 1} {b + 1} {c + 1}" for a, b, c in ([] if extra_faces is None else extra_faces)]
    path.write_text("\n".join(lines) + "\n")
    return path


def with_teeth(arrays: dict) -> dict:
    """The same head with 120 vertices and 168 faces more, without UV: a tracker's teeth patch."""
    v = len(arrays["v_template"])
    strips = []
    for row in range(6):
        a = v + 15 * row + np.arange(14)
        strips += [np.stack([a, a + 1, a + 15], -1), np.stack([a + 1, a + 16, a + 15], -1)]

    def longer(name: str, fill: float = 0.0) -> np.ndarray:
        return np.concatenate([arrays[name], np.full((120, *arrays[name].shape[1:]), fill)])

    weights = longer("weights")
    weights[v:, 1] = 1
    return {
        **arrays,
        "v_template": longer("v_template", 0.01),
        "f": np.concatenate([arrays["f"], np.concatenate(strips).astype(np.uint32)]),
        "shapedirs": longer("shapedirs"),
        "posedirs": longer("posedirs"),
        "J_regressor": np.concatenate([arrays["J_regressor"], np.zeros((5, 120))], 1),
        "weights": weights,
    }


@contextmanager
def fake_chumpy():
    """Modules that call themselves chumpy while a pickle is written; their classes keep what they are given."""

    class _State:
        def __init__(self, x=None, **state):
            self.__dict__.update(state, _dirty_vars=set(), _itr=None, _depends_on_deps={})
            if x is not None:
                self.x = x

    made = {}
    for module, names in {
        "chumpy.ch": ["Ch"],
        "chumpy.reordering": ["Select", "Reshape", "transpose"],
        "chumpy.linalg": ["dot"],
    }.items():
        made[module] = types.ModuleType(module)
        for name in names:
            setattr(made[module], name, type(name, (_State,), {"__module__": module}))
    names = {"chumpy": types.ModuleType("chumpy"), **made}
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update(names)
    try:
        classes = {name: getattr(module, name) for module in made.values() for name in vars(module) if name[0] != "_"}
        yield types.SimpleNamespace(**classes)
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


class _Python2Pickler(pickle._Pickler):
    """Writes what Python 2 wrote: byte strings for text and data, and the modules' names of its day."""

    _NAMES = (
        ("numpy._core.multiarray", "numpy.core.multiarray"),
        ("scipy.sparse._csc", "scipy.sparse.csc"),
        ("builtins", "__builtin__"),
        ("copyreg", "copy_reg"),
    )
    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def save_string(self, obj):
        data = obj if isinstance(obj, bytes) else obj.encode("latin-1")
        if self.proto == 0:
            self.write(b"S'" + data.decode("latin-1").encode("unicode_escape").replace(b"'", b"\\'") + b"'\n")
        elif len(data) < 256:
            self.write(b"U" + bytes([len(data)]) + data)
        else:
            self.write(b"T" + struct.pack("<i", len(data)) + data)
        self.memoize(obj)

    def save_global(self, obj, name=None):
        module, name = pickle.whichmodule(obj, obj.__name__), name or obj.__name__
        self.write(f"c{dict(self._NAMES).get(module, module)}\n{name}\n".encode())
        self.memoize(obj)

    dispatch[str] = dispatch[bytes] = save_string
    dispatch[type] = dispatch[types.FunctionType] = dispatch[types.BuiltinFunctionType] = save_global


def dumps_python2(value: object, protocol: int = 2) -> bytes:
    buffer = io.BytesIO()
    _Python2Pickler(buffer, protocol, fix_imports=False).dump(value)
    return buffer.getvalue()
