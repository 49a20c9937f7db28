"""Synthetic people on film: captures with exact truth, made without any download."""

from spatialavatar.clip.synthetic.capture import SyntheticCapture, synthesize_capture

__all__ = ["SyntheticCapture", "synthesize_capture"]
