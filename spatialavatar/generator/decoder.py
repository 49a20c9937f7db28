"""From UV features to local Gaussians: five heads and the FiLM residual head (method.md section 2, 5 to 7).

Everything here works texel by texel. All outputs are offsets from the template skin, and the last layers start at
zero: an untrained decoder gives the skin.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, normalize

from spatialavatar.generator.condition import POSE_AND_EYES, condition
from spatialavatar.generator.config import DecoderConfig
from spatialavatar.generator.recompute import through
from spatialavatar.generator.view_encoding import VIEW_CHANNELS, harmonic_encoding, view_direction
from spatialavatar.head import HeadModel, HeadParams, UVLayout, texel_spacing
from spatialavatar.losses.jacobian import JacobianTerms
from spatialavatar.splat.camera import Camera
from spatialavatar.splat.gaussians import LocalGaussians
from spatialavatar.splat.template_skin import rest_scale, template_skin

_SLOPE = 0.2  # of the heads' rectifiers, whose second derivative costs the Jacobian penalty nothing
CORRECTED = ("position", "rotation", "log_scale", "color")  # by the residual head


@dataclass(frozen=True)
class Decoded:
    """What B subjects show under B drivers."""

    gaussians: LocalGaussians  # heads and residual: what is rendered
    position_offset: Float[Tensor, "B N 3"]  # from the template skin, in units of the triangle's scale
    log_scale_offset: Float[Tensor, "B N 3"]
    deltas: dict[str, Float[Tensor, "B N c"]]  # the residual head's maps by attribute; empty without that head
    jacobian: JacobianTerms | None  # when asked for


class GaussianDecoder(nn.Module):
    """UV features, the target's view and its condition to local Gaussians; the part that an avatar keeps.

    ``recompute`` makes the backward pass redo each head instead of keeping its activations.
    """

    recompute = False

    skin_position: Float[Tensor, "N 3"]
    skin_rotation: Float[Tensor, "N 4"]
    skin_log_scale: Float[Tensor, "N 3"]
    skin_color: Float[Tensor, "N C"]
    skin_opacity: Float[Tensor, " N"]
    reach: Float[Tensor, "N 1"]

    def __init__(self, config: DecoderConfig, head: HeadModel, layout: UVLayout) -> None:
        super().__init__()
        self.config = config
        template, faces, face_index = head.template, head.faces, layout.face_index
        spacing = texel_spacing(head, layout)
        skin = template_skin(template, faces, face_index, layout.barycentric, spacing, config.color_channels)
        scale = rest_scale(template, faces, face_index)
        constants = {
            "skin_position": skin.position[0],
            "skin_rotation": skin.rotation[0],
            "skin_log_scale": skin.log_scale[0],
            "skin_color": skin.color[0],
            "skin_opacity": skin.opacity_logit[0],
            "reach": config.position_bound / scale[:, None],  # the bound in units of the triangle's scale
        }
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)
        widths = {"position": 3, "rotation": 4, "log_scale": 3, "color": config.color_channels, "opacity": 1}
        self.heads = nn.ModuleDict({name: _Head(config, width) for name, width in widths.items()})
        corrected = {name: widths[name] for name in CORRECTED}
        self.residual = _Residual(config, head.expression_codes + POSE_AND_EYES, corrected) if config.residual else None

    def at(
        self, features: Float[Tensor, "B N F"], params: HeadParams, camera: Camera, *, penalised: bool = False
    ) -> Decoded:
        """The Gaussians for B driver frames in canonical form."""
        out: Decoded = self(
            features,
            harmonic_encoding(view_direction(camera.world_to_camera)),
            condition(params),
            penalised=penalised,
        )
        return out

    def forward(
        self,
        features: Float[Tensor, "B N F"],
        view: Float[Tensor, "B 27"],
        driver: Float[Tensor, "B E+12"],
        *,
        penalised: bool = False,
    ) -> Decoded:
        """From the encoded view and condition of each driver.

        ``penalised``: give the Jacobian penalty its terms as well, the heads' alone without the residual.
        """
        views = {name: view for name in self.heads}
        if penalised:  # a copy for each penalised head, so that one backward tells their gradients apart
            views |= {name: view.detach().clone().requires_grad_() for name in ("position", "log_scale")}
        dtype = self.skin_position.dtype
        raw = {
            name: through(head, features, views[name], recompute=self.recompute).to(dtype)
            for name, head in self.heads.items()
        }
        deltas = self.residual(features, driver) if self.residual is not None else {}
        deltas = {name: delta.to(dtype) for name, delta in deltas.items()}

        def total(name: str) -> Tensor:
            return raw[name] + deltas[name] if name in deltas else raw[name]

        position_offset = self._position_offset(total("position"))
        log_scale_offset = self._log_scale_offset(total("log_scale"))
        color = total("color")
        jacobian = None
        if penalised:
            jacobian = JacobianTerms(
                position=self._position_offset(raw["position"]),
                log_scale=self._log_scale_offset(raw["log_scale"]),
                view_of_position=views["position"],
                view_of_log_scale=views["log_scale"],
            )
        gaussians = LocalGaussians(
            position=self.skin_position + position_offset,
            rotation=normalize(self.skin_rotation + total("rotation"), dim=-1),
            log_scale=self.skin_log_scale + log_scale_offset,
            # the skin's colour is 0.5, where the sigmoid starts
            color=torch.cat([color[..., :3].sigmoid(), self.skin_color[:, 3:] + color[..., 3:]], -1),
            opacity_logit=self.skin_opacity + total("opacity").squeeze(-1),
        )
        return Decoded(gaussians, position_offset, log_scale_offset, deltas, jacobian)

    def _position_offset(self, raw: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N 3"]:
        return raw.tanh() * self.reach

    def _log_scale_offset(self, raw: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N 3"]:
        return raw.tanh() * math.log(self.config.scale_bound)


class _Head(nn.Module):
    """A perceptron on each texel's F and the view; the view's share of the first layer is computed once."""

    def __init__(self, config: DecoderConfig, out_channels: int) -> None:
        super().__init__()
        hidden = config.hidden_channels
        self.features = nn.Linear(config.feature_channels, hidden)
        self.view = nn.Linear(VIEW_CHANNELS, hidden, bias=False)
        self.hidden = nn.Linear(hidden, hidden)
        self.output = _zeroed(nn.Linear(hidden, out_channels))

    def forward(self, features: Float[Tensor, "B N F"], view: Float[Tensor, "B 27"]) -> Float[Tensor, "B N c"]:
        first = leaky_relu(self.features(features) + self.view(view)[:, None], _SLOPE)
        out: Tensor = self.output(leaky_relu(self.hidden(first), _SLOPE))
        return out


class _Residual(nn.Module):
    """(1 + gamma_a) F + beta_a by FiLM from the condition, then a zero-initialised 1 x 1 convolution per attribute."""

    def __init__(self, config: DecoderConfig, condition_channels: int, widths: dict[str, int]) -> None:
        super().__init__()
        self.features = config.feature_channels
        self.film = nn.Sequential(
            nn.Linear(condition_channels, config.residual_hidden),
            nn.SiLU(),
            _zeroed(nn.Linear(config.residual_hidden, 2 * self.features * len(widths))),
        )
        self.convs = nn.ModuleDict({name: _zeroed(nn.Linear(self.features, width)) for name, width in widths.items()})

    def forward(
        self, features: Float[Tensor, "B N F"], driver: Float[Tensor, "B E+12"]
    ) -> dict[str, Float[Tensor, "B N c"]]:
        film = self.film(driver).unflatten(-1, (len(self.convs), 2, 1, self.features))
        return {
            name: conv((1 + film[:, a, 0]) * features + film[:, a, 1])
            for a, (name, conv) in enumerate(self.convs.items())
        }


def _zeroed(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
