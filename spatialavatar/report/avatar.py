"""One avatar: how it was measured, and its refinement's curve."""

from spatialavatar import files
from spatialavatar.avatar.folder import LOG, MANIFEST, METRICS
from spatialavatar.evaluation.table import METRICS as MEASURED
from spatialavatar.evaluation.table import Column
from spatialavatar.report.content import Facts, Figure, Section, Table
from spatialavatar.report.curves import draw
from spatialavatar.report.training import read_log, series

COLUMNS = (
    *MEASURED[:3],  # PSNR, SSIM, LPIPS
    Column("mse", "MSE", 5),
    Column("max_aspect_ratio", "aspect ratio", 2),
    Column("frames", "frames"),
    Column("split", "split"),
)


def avatar_section(location: str) -> Section:
    """Raises SpatialAvatarError for files that cannot be read."""
    manifest = files.read_json(files.join(location, MANIFEST))
    names = set(files.list_folder(location))
    section = Section("Avatar", location, f"{manifest['kind']}, {manifest['layout']['count']:,} Gaussians")
    head = manifest["head"]
    facts = {
        "kind": manifest["kind"],
        "Gaussians": f"{manifest['layout']['count']:,}",
        "head": f"{head['id']}, {head['licence']}",
    }
    section.parts.append(Facts(facts, files.join(location, MANIFEST)))
    if METRICS in names:
        where = files.join(location, METRICS)
        metrics = files.read_json(where)
        section.headline += f", PSNR {metrics['psnr']:.2f} dB on {metrics['frames']} {metrics['split']} frames"
        section.parts.append(Table("Measured", COLUMNS, [metrics], where))
    if LOG in names:
        where = files.join(location, LOG)
        if curve := series(read_log(where), "loss", "iteration"):
            section.parts.append(Figure("Refinement", draw({"loss": {"": curve}}, "iteration"), "svg", where))
    return section
