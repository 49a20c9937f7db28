"""Gaussians, their binding to triangles, cameras, and the splatter."""

from spatialavatar.splat import process as process  # first of all: it settles how threads wait, and watches for forks
