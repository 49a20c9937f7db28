"""A linear-blend-skinned morphable head (method.md section 1; Li et al. 2017, "FLAME", eqs. 1-5).

Any numbers of vertices, shape and expression codes; five joints (root, neck, jaw, left eye, right eye).
"""

import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from spatialavatar.head.params import HeadParams
from spatialavatar.head.rotation import axis_angle_to_matrix

JOINTS = ("root", "neck", "jaw", "eye_left", "eye_right")
PARENTS = (-1, 0, 1, 1, 1)  # of each joint, as an index into JOINTS


@dataclass(frozen=True)
class HeadInfo:
    """What a head file says of itself beside its arrays."""

    id: str  # e.g. "flame2020", "ict-facekit", "builtin-1"
    licence: str  # short name: "MIT", "CC-BY-4.0", ...
    attribution: str  # the line that artefacts made with this head must carry
    joints_follow_expression: bool  # joints regressed from shape and expression (FLAME) or from shape alone
    part_names: list[str] = field(default_factory=list)  # meaning of HeadModel.face_part
    expression_names: list[str] = field(default_factory=list)  # empty, or one name for each expression code
    mouth_opening_codes: list[str] = field(default_factory=list)  # names of expressions that open the mouth
    landmark_scheme: str = "none"  # "ibug68" or "none"


class HeadModel(nn.Module):
    """The head as buffers; calling it poses the mesh.

    V vertices, F faces, U UV vertices, S shape and E expression codes, J = 5 joints, P pose correctives
    (0 or 36: nine for each joint but the root), L landmarks.
    """

    template: Float[Tensor, "V 3"]
    faces: Int[Tensor, "F 3"]
    uv: Float[Tensor, "U 2"]
    uv_faces: Int[Tensor, "F 3"]
    face_chart: Int[Tensor, " F"]
    face_part: Int[Tensor, " F"]
    shapedirs: Float[Tensor, "V 3 S"]
    exprdirs: Float[Tensor, "V 3 E"]
    posedirs: Float[Tensor, "V 3 P"]
    joint_regressor: Float[Tensor, "J V"]
    weights: Float[Tensor, "V J"]
    landmark_faces: Int[Tensor, " L"]
    landmark_barycentric: Float[Tensor, "L 3"]

    def __init__(
        self,
        info: HeadInfo,
        *,
        template: Float[Tensor, "V 3"],  # metres
        faces: Int[Tensor, "F 3"],
        uv: Float[Tensor, "U 2"],  # [0, 1], v up
        uv_faces: Int[Tensor, "F 3"],  # -1 for faces without UV (they carry no Gaussians)
        face_chart: Int[Tensor, " F"],  # UV chart of each face, -1 without UV
        face_part: Int[Tensor, " F"],  # index into info.part_names
        shapedirs: Float[Tensor, "V 3 S"],
        exprdirs: Float[Tensor, "V 3 E"],
        posedirs: Float[Tensor, "V 3 P"],
        joint_regressor: Float[Tensor, "J V"],
        weights: Float[Tensor, "V J"],
        landmark_faces: Int[Tensor, " L"],
        landmark_barycentric: Float[Tensor, "L 3"],
        content_hash: str = "",  # set by the file reader; names this head in every artefact
    ) -> None:
        super().__init__()
        self.info = info
        self.content_hash = content_hash
        arrays = dict(locals())
        for name in ARRAYS:
            self.register_buffer(name, arrays[name], persistent=False)

    @property
    def shape_codes(self) -> int:
        return self.shapedirs.shape[-1]

    @property
    def expression_codes(self) -> int:
        return self.exprdirs.shape[-1]

    @property
    def vertex_count(self) -> int:
        return self.template.shape[0]

    @cached_property
    def mouth_opening_indices(self) -> list[int]:
        return [self.info.expression_names.index(name) for name in self.info.mouth_opening_codes]

    def on(self, device: torch.device | str) -> "HeadModel":
        """This head on a device: itself when it is there, else a copy (``to`` would move it under its other users)."""
        return self if self.template.device == torch.device(device) else copy.deepcopy(self).to(device)

    def neutral(self, batch: int = 1) -> HeadParams:
        """Parameters of the mean head at rest."""
        return HeadParams.neutral(
            batch, self.shape_codes, self.expression_codes, self.template.device, self.template.dtype
        )

    def rest_joints(self, params: HeadParams) -> Float[Tensor, "B 5 3"]:
        """Joint positions before posing, metres; without making the vertices, so that a long clip fits in memory."""
        template, shapedirs, exprdirs = self._joint_bases
        joints = template + torch.einsum("jds,bs->bjd", shapedirs, params.shape)
        if params.static_offset is not None:
            joints = joints + self.joint_regressor @ params.static_offset
        if self.info.joints_follow_expression:
            joints = joints + torch.einsum("jde,be->bjd", exprdirs, params.expression)
        return joints

    @cached_property
    def _joint_bases(self) -> tuple[Float[Tensor, "J 3"], Float[Tensor, "J 3 S"], Float[Tensor, "J 3 E"]]:
        """Template, shape and expression directions of the joints."""
        regressor = self.joint_regressor
        return (
            regressor @ self.template,
            torch.einsum("jv,vds->jds", regressor, self.shapedirs),
            torch.einsum("jv,vde->jde", regressor, self.exprdirs),
        )

    def _apply(self, fn: Any, recurse: bool = True) -> "HeadModel":
        """Also when moved or cast: what was made of the buffers is made anew."""
        self.__dict__.pop("_joint_bases", None)
        return super()._apply(fn, recurse)

    def forward(self, params: HeadParams) -> Float[Tensor, "B V 3"]:
        """Posed vertices in metres, in the frame that ``translation`` and ``global_rotation`` place the head in."""
        shaped, with_expression = self._shaped(params)
        joints = self._joints(shaped, with_expression)
        rotations = axis_angle_to_matrix(
            torch.stack([params.global_rotation, params.neck, params.jaw, params.eyes[:, :3], params.eyes[:, 3:]], 1)
        )
        vertices = with_expression
        if self.posedirs.shape[-1]:
            identity = torch.eye(3, dtype=rotations.dtype, device=rotations.device)
            correctives = (rotations[:, 1:] - identity).flatten(1)
            vertices = vertices + torch.einsum("vdp,bp->bvd", self.posedirs, correctives)

        # world transform of each joint, then relative to its rest position: x -> R x + (origin - R joint)
        world_rotation = [rotations[:, 0]]
        world_origin = [joints[:, 0]]
        for j, p in enumerate(PARENTS[1:], 1):
            bone = joints[:, j] - joints[:, p]
            world_rotation.append(world_rotation[p] @ rotations[:, j])
            world_origin.append(world_origin[p] + (world_rotation[p] @ bone[..., None]).squeeze(-1))
        rotation = torch.stack(world_rotation, 1)
        shift = torch.stack(world_origin, 1) - (rotation @ joints[..., None]).squeeze(-1)

        transform = torch.cat([rotation, shift[..., None]], -1).flatten(2)  # [B, J, 12]
        blended = (self.weights @ transform).unflatten(-1, (3, 4))  # [B, V, 3, 4]
        posed = (blended[..., :3] @ vertices[..., None]).squeeze(-1) + blended[..., 3]
        return posed + params.translation[:, None]

    def landmarks(self, vertices: Float[Tensor, "B V 3"]) -> Float[Tensor, "B L 3"]:
        """Points on posed ``vertices``, metres, in the order of the head's landmark scheme."""
        corners = vertices[:, self.faces[self.landmark_faces]]
        return (corners * self.landmark_barycentric[..., None]).sum(-2)

    def _shaped(self, params: HeadParams) -> tuple[Tensor, Tensor]:
        shaped = self.template + torch.einsum("vds,bs->bvd", self.shapedirs, params.shape)
        if params.static_offset is not None:
            shaped = shaped + params.static_offset
        return shaped, shaped + torch.einsum("vde,be->bvd", self.exprdirs, params.expression)

    def _joints(self, shaped: Tensor, with_expression: Tensor) -> Tensor:
        return self.joint_regressor @ (with_expression if self.info.joints_follow_expression else shaped)


ARRAYS = (
    "template",
    "faces",
    "uv",
    "uv_faces",
    "face_chart",
    "face_part",
    "shapedirs",
    "exprdirs",
    "posedirs",
    "joint_regressor",
    "weights",
    "landmark_faces",
    "landmark_barycentric",
)
