"""Foreign pickles: what is read, what is refused, and that nothing in them runs."""

import collections
import os
import pickle
import struct
import sys

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialavatar.errors import SpatialAvatarError
from spatialavatar.unpickle import ChumpyArray, read_pickle, unpickle
from tests.builders.flame_like import dumps_python2, fake_chumpy

VALUES = {
    "array": np.arange(6.0).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6, dtype="<i4").reshape(2, 3)),
    "big endian": np.arange(3, dtype=">f4"),
    "empty": np.zeros((0, 3)),
    "bool": np.array([True, False]),
    "text": np.array(["ab", "c"]),
    "objects": np.array([{"x": 1}, None, "y"], object),
    "scalar": np.float32(2.5),
    "csc": scipy.sparse.random(5, 50, 0.1, "csc", random_state=0),
    "csr": scipy.sparse.random(5, 50, 0.1, "csr", random_state=1),
    "coo": scipy.sparse.random(5, 50, 0.1, "coo", random_state=2),
    "csc array": scipy.sparse.csc_array(np.eye(3)),
    "plain": (1, 2.5, "x", b"y\xff", True, None, 1 << 80, 2j, [], {}, ()),
    "sets": [{1, 2}, frozenset([3])],
    "ordered": collections.OrderedDict([("b", 1), ("a", 2)]),
    "default": collections.defaultdict(list, {1: [2]}),
    "bytearray": bytearray(b"xyz"),
}


def same(a, b):
    if scipy.sparse.issparse(a):
        return type(a) is type(b) and (a != b).nnz == 0 and np.allclose(b @ np.ones(b.shape[1]), a.sum(1).ravel())
    if isinstance(a, np.ndarray):
        return type(b) is np.ndarray and a.shape == b.shape and bool((a == b).all()) and b.flags.writeable
    return a == b


@pytest.mark.parametrize("protocol", range(6))
def test_reads_numpy_scipy_and_containers(protocol):
    read = unpickle(pickle.dumps(VALUES, protocol), "f.pkl")
    assert [name for name in VALUES if not same(VALUES[name], read[name])] == []


@pytest.mark.parametrize("protocol", range(3))
def test_reads_what_python_2_wrote(protocol):
    value = {"array": VALUES["array"], "csc": VALUES["csc"], "name": "lbs", "set": {1}, "scalar": np.float64(0.1)}
    data = dumps_python2(value, protocol)
    assert b"numpy.core.multiarray" in data and b"scipy.sparse.csc" in data and b"__builtin__" in data
    read = unpickle(data, "f.pkl")
    assert [name for name in value if not same(value[name], read[name])] == []


def test_shared_and_circular_references_survive():
    a = np.zeros(3)
    loop: list = [a, a]
    loop.append(loop)
    read = unpickle(pickle.dumps(loop), "f.pkl")
    assert read[0] is read[1] and read[2] is read


def test_chumpy_arrays_are_read_without_chumpy():
    x = np.arange(12.0).reshape(3, 4)
    with fake_chumpy() as fake:
        leaf = fake.Ch(x)
        value = {
            "leaf": leaf,
            "select": fake.Select(a=leaf, idxs=np.array([5, 0, 7, 2]), preferred_shape=(2, 2)),
            "reshape": fake.Reshape(a=leaf, newshape=(2, 6)),
            "transpose": fake.transpose(a=fake.Reshape(a=leaf, newshape=(2, 6)), axes=None),
            "computed": fake.dot(a=leaf, b=leaf),
        }
        datas = [dumps_python2(value, protocol) for protocol in range(3)] + [pickle.dumps(value, 4)]
    for data in datas:
        read = unpickle(data, "f.pkl")
        assert all(type(v) is ChumpyArray for v in read.values())
        np.testing.assert_array_equal(np.asarray(read["leaf"]), x)
        np.testing.assert_array_equal(np.asarray(read["select"]), [[5, 0], [7, 2]])
        np.testing.assert_array_equal(np.asarray(read["reshape"]), x.reshape(2, 6))
        np.testing.assert_array_equal(np.asarray(read["transpose"]), x.reshape(2, 6).T)
        with pytest.raises(SpatialAvatarError, match=r"chumpy\.linalg\.dot cannot be read without chumpy"):
            np.asarray(read["computed"])
    assert not any(name.startswith("chumpy") for name in sys.modules)


CANARY: list[str] = []


def canary(*arguments: object) -> str:
    CANARY.append("ran")
    return "ran"


def text(s: str) -> bytes:
    return b"\x8c" + bytes([len(s)]) + s.encode()


def array_pickle(dtype: bytes, shape_and_raw: bytes) -> bytes:
    """An array with this state, by hand: shape and raw data are given as opcodes with | between them."""
    shape, _, raw = shape_and_raw.partition(b"|")
    made = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    return made + b"(K\x01" + shape + dtype + b"\x89" + raw + b"tb."


FLOATS = b"cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
ME = f"{__name__}"

REFUSED = {  # bytes -> what the message must name
    "os.system": (b"cos\nsystem\n(S'true'\ntR.", "os.system"),
    "posix, protocol 4": (
        b"\x80\x04" + text("posix") + text("system") + b"\x93" + text("true") + b"\x85R.",
        "posix.sys",
    ),
    "eval": (b"c__builtin__\neval\n(S'1'\ntR.", "eval"),
    "getattr": (b"cbuiltins\ngetattr\n(S'1'\nS'x'\ntR.", "getattr"),
    "a function of the test": (f"c{ME}\ncanary\n)R.".encode(), "canary"),
    "dotted name": (b"\x80\x04" + text("numpy") + text("ndarray.__class__") + b"\x93.", "ndarray.__class__"),
    "dotted to a known name": (
        b"\x80\x04" + text("numpy") + text("_core.multiarray.scalar") + b"\x93.",
        "numpy._core.multiarray.scalar",
    ),
    "dotted to os": (b"\x80\x04" + text("collections") + text("abc.sys.modules") + b"\x93.", "abc.sys.modules"),
    "numpy.load": (b"cnumpy\nload\n(S'x'\ntR.", "numpy.load"),
    "numpy.f2py": (b"cnumpy.testing._private.utils\nrunstring\n(S'1'\nI1\ntR.", "runstring"),
    "codec": (b"c_codecs\nencode\n(VAAAA\nS'zip'\ntR.", "encoding"),
    "memmap as array": (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nmemmap\nK\x00\x85U\x01b\x87R.",
        "numpy.memmap",
    ),
    "list as array": (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nc__builtin__\nlist\nK\x00\x85U\x01b\x87R.",
        "builtins.list",
    ),
    "ndarray called": (b"cnumpy\nndarray\n((I1000000000\nttR.", "a call of numpy.ndarray"),
    "list called": (b"cbuiltins\nlist\n)R.", "a call of builtins.list"),
    "text called": (b"S'x'\n)R.", "a call of a str"),
    "ndarray made": (b"\x80\x02cnumpy\nndarray\n)\x81.", "an object of numpy.ndarray"),
    "state of a dictionary": (b"}}b.", "state of a dict"),
    "state of a name": (b"cnumpy\nndarray\n}b.", "state of numpy.ndarray"),
    "second state of an array": (
        array_pickle(FLOATS, b"K\x01\x85|U\x08" + b"\0" * 8)[:-1] + b"(K\x01K\x01\x85tb.",
        "state of a ndarray",
    ),
    "factory": (b"ccollections\ndefaultdict\n(cos\nsystem\ntR.", "os.system"),
    "foreign base": (
        b"ccopy_reg\n_reconstructor\n(cscipy.sparse\ncsc_matrix\nc__builtin__\nlist\nNtR.",
        "foreign base",
    ),
    "structured dtype": (b"cnumpy\ndtype\n(S'V8'\nI0\nI1\ntR.", "structured"),
    "fields in the state of a dtype": (
        b"\x80\x02cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<NU\x01a\x85}J\xff\xff\xff\xffK\x01K\x00tb.",
        "structured",
    ),
    "nested tuples as a key": (b"}((ttS'x'\ns.", "a tuple as a key"),
    "persistent id": (b"Pwhatever\n.", None),
    "instance": (b"(S'true'\nios\nsystem\n.", None),
    "object": (b"(cos\nsystem\nS'true'\no.", "os.system"),
    "extension": (b"\x80\x02\x82\x01.", None),
    "buffer": (b"\x80\x05\x97.", None),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_by_name(name, monkeypatch):
    monkeypatch.setattr(os, "system", canary)
    data, expected = REFUSED[name]
    with pytest.raises(SpatialAvatarError) as error:
        unpickle(data, "f.pkl")
    assert CANARY == []
    assert str(error.value).startswith("f.pkl: ") and "\n" not in str(error.value)
    if expected:
        assert expected in str(error.value) and "nothing of it was run" in str(error.value)


def test_the_refused_ones_are_real():
    """Python's own reader runs the canary: the list above tests something."""
    pickle.loads(REFUSED["a function of the test"][0])
    assert CANARY.pop() == "ran"


BROKEN = {
    "shape larger than the data": array_pickle(FLOATS, b"J\x00\x00\x00\x40\x85|U\x08" + b"\0" * 8),
    "negative shape": array_pickle(FLOATS, b"J\xff\xff\xff\xff\x85|U\x08" + b"\0" * 8),
    "shape of text": array_pickle(FLOATS, b"U\x01x\x85|U\x08" + b"\0" * 8),
    "no element type": array_pickle(b"N", b"K\x01\x85|U\x08" + b"\0" * 8),
    "pointers as data": array_pickle(b"cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R", b"K\x01\x85|U\x08" + b"A" * 8),
    "pointer as scalar": b"\x80\x02cnumpy.core.multiarray\nscalar\n"
    b"cnumpy\ndtype\nU\x02O8K\x00K\x01\x87RU\x08AAAAAAAA\x86R.",
    "array without state": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R.",
    "bytearray of a terabyte": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x.",
    "bytes of an exabyte": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"x.",
    "frame of an exabyte": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"N",
    "memo that is not there": b"h\x05.",
    "pop of nothing": b"0.",
    "append to text": b"S'x'\nNa.",
    "set an item of text": b"S'x'\nNNs.",
    "empty": b"",
    "text": b"hello",
    "future protocol": b"\x80\x63N.",
}


@pytest.mark.parametrize("name", BROKEN)
def test_damaged_is_one_clear_error(name):
    with pytest.raises(SpatialAvatarError, match=r"^f\.pkl: not a readable pickle \(.+\); it is damaged or truncated"):
        unpickle(BROKEN[name], "f.pkl")


@pytest.mark.parametrize(
    "change",
    [
        {"indices": np.array([7, 1], np.int32)},
        {"indptr": np.array([0, 1, 99], np.int32)},
        {"indptr": np.array([0, 2, 1], np.int32)},
        {"indptr": np.array([0, 9, -5], np.int32)},  # passes scipy's own check
        {"indptr": np.array([-1, 0, 2], np.int32)},
        {"indptr": np.array([0, 2], np.int32)},
        {"indptr": np.array([0.0, 1, 2])},
        {"indices": np.array([0], np.int32)},
        {"indices": np.array([-9, 1], np.int32)},
        {"_shape": (2, 2, 2)},
        {"_shape": (2, 1 << 39)},
        {"data": [1.0, 2.0]},
        {"data": None},
    ],
)
def test_sparse_matrix_with_a_crafted_state(change):
    matrix = scipy.sparse.csc_matrix(np.eye(2))
    matrix.__dict__.update(change)
    with pytest.raises(SpatialAvatarError):
        unpickle(pickle.dumps(matrix), "f.pkl")


def test_coo_matrix_with_a_crafted_state():
    for change in ({"coords": (np.array([0, 9]), np.array([0, 1]))}, {"coords": (np.array([0]), np.array([0, 1]))}):
        matrix = scipy.sparse.coo_matrix(np.eye(2))
        matrix.__dict__.update(change)
        with pytest.raises(SpatialAvatarError):
            unpickle(pickle.dumps(matrix), "f.pkl")


def test_sparse_matrix_of_an_array_that_changes_after_its_check():
    indptr = pickle.dumps(np.zeros(3, np.int32), 2)[2:-1]
    late = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87Rr\x00\x02\x00\x00"
    state = b"}(U\x06_shapeK\x02K\x02\x86U\x04data" + late + b"U\x07indicesj\x00\x02\x00\x00U\x06indptr" + indptr + b"u"
    with pytest.raises(SpatialAvatarError, match="arrays that are not complete"):
        unpickle(b"\x80\x02cscipy.sparse\ncsc_matrix\n)\x81" + state + b"b.", "f.pkl")


def test_chumpy_array_of_itself():
    with fake_chumpy() as fake:
        loop = fake.Reshape(newshape=(1,))
        loop.a = loop
        select = fake.Select(a=fake.Ch(np.zeros(3)), preferred_shape=(1,))
        select.idxs = select
        data = pickle.dumps([loop, select], 2)
    for value in unpickle(data, "f.pkl"):
        with pytest.raises(SpatialAvatarError, match="cannot be read without chumpy"):
            np.asarray(value)


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        ("Reshape", {}),
        ("Reshape", {"newshape": (1 << 70,)}),
        ("Reshape", {"newshape": (-1, 1 << 62, 1 << 62)}),
        ("Reshape", {"newshape": "text\nof two lines"}),
        ("Reshape", {"newshape": {"a": 1}}),
        ("Reshape", {"newshape": (2,)}),
        ("transpose", {"axes": (1 << 70,)}),
        ("transpose", {"axes": 5}),
        ("Select", {}),
        ("Select", {"idxs": np.array([1.5])}),
        ("Select", {"idxs": np.array([9])}),
        ("Select", {"idxs": np.array([1]), "preferred_shape": (1 << 70,)}),
        ("Ch", {"x": np.array(["text"])}),
        ("Ch", {"x": np.array([None])}),
        ("Ch", {"x": 1 << 80}),
        ("Ch", {"x": [1.0]}),
    ],
)
def test_chumpy_array_with_a_crafted_state(kind, state):
    with fake_chumpy() as fake:
        a = {} if kind == "Ch" else {"a": fake.Ch(np.zeros(3))}
        data = pickle.dumps(getattr(fake, kind)(**a, **state), 2)
    with pytest.raises(SpatialAvatarError, match="cannot be read without chumpy") as error:
        np.asarray(unpickle(data, "f.pkl"))
    assert "\n" not in str(error.value)


def test_arrays_cannot_outgrow_the_file():
    raw = np.zeros(1 << 17)  # 1 MB that thousands of arrays claim for their own
    again = b"\x80\x02]("
    again += b"T" + struct.pack("<i", raw.nbytes) + bytes(raw.nbytes) + b"r\x00\x01\x00\x000"
    again += FLOATS + b"r\x01\x01\x00\x000"
    element = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01J\x00\x00\x02\x00\x85"
        b"j\x01\x01\x00\x00\x89j\x00\x01\x00\x00tb"
    )
    assert len(unpickle(again + element + b"e.", "f.pkl")[0]) == 1 << 17
    with pytest.raises(SpatialAvatarError, match="more than 4 times the bytes of the file"):
        unpickle(again + element * 2000 + b"e.", "f.pkl")


def test_scalars_cannot_outgrow_the_file():
    raw = b"T" + struct.pack("<i", 100_000) + bytes(100_000) + b"r\x00\x01\x00\x000"
    long = b"cnumpy\ndtype\nU\x07S100000K\x00K\x01\x87Rr\x01\x01\x00\x000"
    element = b"cnumpy.core.multiarray\nscalar\nj\x01\x01\x00\x00j\x00\x01\x00\x00\x86R"
    assert len(unpickle(b"\x80\x02](" + raw + long + element * 3 + b"e.", "f.pkl")) == 3
    with pytest.raises(SpatialAvatarError, match="more than 4 times the bytes of the file"):
        unpickle(b"\x80\x02](" + raw + long + element * 100 + b"e.", "f.pkl")


@pytest.mark.parametrize("kind", ["dict", "list", "set", "bytes"])
def test_copies_of_containers_cannot_outgrow_the_file(kind):
    many = range(2000)
    name, content = {
        "dict": ("collections\nOrderedDict", dict.fromkeys(many)),
        "list": ("collections\nOrderedDict", [(i, i) for i in many]),
        "set": ("__builtin__\nset", list(many)),
        "bytes": ("__builtin__\nbytes", bytes(20_000)),
    }[kind]
    shared = pickle.dumps(content, 4)[11:-1] + b"\x94\x85r\x00\x01\x00\x000"  # a tuple of it, by protocol 4's memo
    start = b"\x80\x04](" + shared + f"c{name}\n".encode() + b"r\x01\x01\x00\x000"
    element = b"j\x01\x01\x00\x00j\x00\x01\x00\x00R"
    assert len(unpickle(start + element + b"e.", "f.pkl")) == 1
    with pytest.raises(SpatialAvatarError, match="more than 4 times the bytes of the file"):
        unpickle(start + element * 1000 + b"e.", "f.pkl")


@pytest.mark.parametrize("key", [1 << 65, -(1 << 65), (0, 1 << 65), (0,) * 33])
def test_keys_are_short_because_their_hashes_can_be_made_slow(key):
    with pytest.raises(SpatialAvatarError, match="as a key or a set's member"):
        unpickle(pickle.dumps({key: 1}), "f.pkl")
    with pytest.raises(SpatialAvatarError, match="as a key or a set's member"):
        unpickle(pickle.dumps({key}), "f.pkl")


def test_hash_of_doubling_tuples_is_never_computed():
    double = [b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) + b"0" for i in range(60)]
    data = b")q\x000" + b"".join(double) + b"h\x3c"
    with pytest.raises(SpatialAvatarError, match="as a key"):
        unpickle(b"\x80\x02}" + data + b"Ns.", "f.pkl")


def test_deep_nesting_is_no_recursion():
    assert unpickle(b"]" * 100_000 + b"a" * 99_999 + b".", "f.pkl")


def test_files(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps([1, 2]))
    assert read_pickle(path) == [1, 2]
    with pytest.raises(SpatialAvatarError, match="read up to 3"):
        read_pickle(path, max_bytes=3)
    with pytest.raises(SpatialAvatarError, match="no such file"):
        read_pickle(tmp_path / "b.pkl")


SEEDS = [
    pickle.dumps({k: VALUES[k] for k in ("array", "objects", "csc", "plain", "scalar", "sets")}, p) for p in range(6)
]
SEEDS.append(dumps_python2({"array": VALUES["array"], "csc": VALUES["csc"], "ordered": VALUES["ordered"]}))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=4), st.data())
def test_damage_gives_a_value_or_our_error(seed, changes, data):
    damaged = bytearray(seed)
    for position, byte in changes:
        damaged[position % len(damaged)] = byte
    damaged = damaged[: data.draw(st.integers(len(damaged) // 2, len(damaged)))]
    _use(bytes(damaged))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([bytes([b]) for b in b"()]}.0123MNa dersutbcGKUTq\x81\x85\x86\x87\x93\x80"]), max_size=30)
)
def test_any_program_gives_a_value_or_our_error(opcodes):
    _use(b"\x80\x02" + FLOATS + b"q\x00" + b"".join(opcodes) + b".")


def _use(data: bytes) -> None:
    try:
        value = unpickle(data, "f.pkl")
    except SpatialAvatarError:
        return
    for v in value.values() if isinstance(value, dict) else [value]:
        if isinstance(v, np.ndarray):
            v.tobytes()
        elif scipy.sparse.issparse(v):
            v.sum()
