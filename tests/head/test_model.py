"""Posing a head, against FLAME's equations written again in float64 (Li et al. 2017, eqs. 1-5)."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from spatialavatar.head.convert.charts import uv_charts
from spatialavatar.head.file import head_from_arrays
from spatialavatar.head.model import HeadInfo, HeadModel
from spatialavatar.head.params import HeadParams
from tests.builders.flame_like import flame_like

PARENT = {1: 0, 2: 1, 3: 1, 4: 1}


def small_head(
    follow: bool = True, correctives: bool = True, shape_codes: int = 6, expression_codes: int = 4
) -> HeadModel:
    """In float64, with weights that sum to 1 in float64."""
    a = flame_like(1, shape_codes, expression_codes, rings=3)
    info = HeadInfo("small", "none", "made by a test", joints_follow_expression=follow, landmark_scheme="none")
    arrays = {
        "template": a["v_template"],
        "faces": a["f"],
        "uv": a["vt"],
        "uv_faces": a["ft"],
        "face_chart": uv_charts(a["ft"]),
        "face_part": np.zeros(len(a["f"])),
        "shapedirs": a["shapedirs"][..., :shape_codes] * 3,
        "exprdirs": a["shapedirs"][..., shape_codes:] * 3,
        "posedirs": a["posedirs"][..., : 36 if correctives else 0],
        "joint_regressor": a["J_regressor"],
        "weights": a["weights"],
        "landmark_faces": [0, 3],
        "landmark_barycentric": [[0.2, 0.3, 0.5], [1, 0, 0]],
    }
    head = head_from_arrays(info, arrays).double()
    head.weights /= head.weights.sum(1, keepdim=True)
    return head


def random_params(head: HeadModel, batch: int = 2, seed: int = 0, offset: bool = True) -> HeadParams:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return HeadParams(
        shape=draw(batch, head.shape_codes),
        expression=draw(batch, head.expression_codes),
        global_rotation=draw(batch, 3),
        neck=draw(batch, 3) * 0.5,
        jaw=draw(batch, 3) * 0.3,
        eyes=draw(batch, 6) * 0.3,
        translation=draw(batch, 3),
        static_offset=draw(batch, head.vertex_count, 3) * 0.01 if offset else None,
    )


def posed_by_the_paper(head: HeadModel, params: HeadParams, row: int) -> np.ndarray:
    """M(beta, theta, psi) = W(T_P, J, theta, weights), one vertex after the other, with 4 x 4 matrices."""
    p = {f.name: getattr(params, f.name)[row].numpy() for f in dataclasses.fields(params)}
    a = {name: buffer.numpy() for name, buffer in head.named_buffers()}
    theta = np.concatenate([p["global_rotation"], p["neck"], p["jaw"], p["eyes"]]).reshape(5, 3)
    rotation = Rotation.from_rotvec(theta).as_matrix()
    shaped = a["template"] + p["static_offset"] + a["shapedirs"] @ p["shape"]
    expressive = shaped + a["exprdirs"] @ p["expression"]
    joints = a["joint_regressor"] @ (expressive if head.info.joints_follow_expression else shaped)
    template = expressive
    if a["posedirs"].shape[-1]:
        template = template + a["posedirs"] @ (rotation[1:] - np.eye(3)).reshape(-1)
    world = np.zeros((5, 4, 4))
    for j in range(5):
        local = np.eye(4)
        local[:3, :3] = rotation[j]
        local[:3, 3] = joints[j] - (joints[PARENT[j]] if j else 0)
        world[j] = world[PARENT[j]] @ local if j else local
    posed = np.zeros_like(template)
    for i, vertex in enumerate(template):
        for j in range(5):
            rest = np.eye(4)
            rest[:3, 3] = -joints[j]
            posed[i] += a["weights"][i, j] * (world[j] @ rest @ np.append(vertex, 1))[:3]
    return posed + p["translation"]


@pytest.mark.parametrize("follow", [True, False])
@pytest.mark.parametrize("correctives", [True, False])
def test_posing_is_that_of_the_paper(follow, correctives):
    head = small_head(follow, correctives)
    params = random_params(head)
    posed = head(params)
    for row in range(2):
        np.testing.assert_allclose(posed[row], posed_by_the_paper(head, params, row), atol=1e-12)


def test_neutral_is_the_template():
    head = small_head()
    torch.testing.assert_close(head(head.neutral(2)), head.template.expand(2, -1, -1), atol=1e-15, rtol=0)


def test_gradients_of_posing():
    head = small_head(shape_codes=2, expression_codes=2)
    params = random_params(head, batch=1)
    names = [f.name for f in dataclasses.fields(params)]
    values = [getattr(params, name).clone().requires_grad_() for name in names]
    some = torch.tensor([0, 40, 90])

    def posed(*tensors: torch.Tensor) -> torch.Tensor:
        return head(HeadParams(**dict(zip(names, tensors))))[:, some]

    assert torch.autograd.gradcheck(posed, values, eps=1e-6, atol=1e-7)


def test_gradient_at_rest_is_finite_and_right():
    head = small_head()
    jaw = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)

    def posed(x: torch.Tensor) -> torch.Tensor:
        return head(dataclasses.replace(head.neutral(), jaw=x)).sum(1)

    assert torch.autograd.gradcheck(posed, [jaw], eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("follow", [True, False])
def test_rest_joints(follow):
    head = small_head(follow)
    params = random_params(head)
    shaped = head.template + params.static_offset + torch.einsum("vds,bs->bvd", head.shapedirs, params.shape)
    if follow:
        shaped = shaped + torch.einsum("vde,be->bvd", head.exprdirs, params.expression)
    torch.testing.assert_close(head.rest_joints(params), head.joint_regressor @ shaped, atol=1e-13, rtol=0)


def test_expression_moves_the_joints_only_where_it_should():
    quiet = random_params(small_head(), seed=3)
    loud = dataclasses.replace(quiet, expression=quiet.expression + 1)
    for follow in (True, False):
        head = small_head(follow)
        moved = (head.rest_joints(loud) - head.rest_joints(quiet)).abs().max()
        assert bool(moved > 1e-4) == follow


def test_landmarks_lie_on_their_faces():
    head = small_head()
    vertices = head(random_params(head))
    a, b, c = vertices[:, head.faces[0]].unbind(1)
    marks = head.landmarks(vertices)
    torch.testing.assert_close(marks[:, 0], 0.2 * a + 0.3 * b + 0.5 * c, atol=1e-7, rtol=0)
    torch.testing.assert_close(marks[:, 1], vertices[:, head.faces[3, 0]])


def test_a_row_beyond_the_batch_is_no_empty_batch():
    params = random_params(small_head(), batch=3)
    assert params[2].batch == params[-1].batch == params[-3].batch == 1
    assert torch.equal(params[-1].neck, params.neck[2:])
    for beyond in (3, 4, -4, -5):
        with pytest.raises(IndexError, match=f"row {beyond} of a batch of 3"):
            params[beyond]
    assert len(list(params)) == 3  # which ends at the IndexError
    assert params[3:].batch == 0 and params[[2, 0]].batch == 2


def test_a_batch_is_its_rows():
    head = small_head()
    params = random_params(head, batch=3)
    posed = head(params)
    for row in range(3):
        torch.testing.assert_close(head(params[row]), posed[row : row + 1], atol=1e-14, rtol=0)
