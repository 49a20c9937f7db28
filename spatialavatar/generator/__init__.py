"""The feed-forward generator: 1 to 4 portraits in, mesh-bound Gaussians out (method.md section 2; paper 3.2)."""

from spatialavatar.generator.config import DecoderConfig, EncoderConfig, GeneratorConfig, StyleUNetConfig

__all__ = ["DecoderConfig", "EncoderConfig", "GeneratorConfig", "StyleUNetConfig"]
