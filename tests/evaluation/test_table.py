"""Tables of results: decimals, empty cells, reasons below."""

import csv
import io

from spatialavatar.evaluation.table import COLUMNS, METRICS, VARIANT, csv_table, table

ROWS = [
    {"variant": "a|b", "psnr": 24.9449, "ssim": 0.8806, "lpips": None, "aed": 0.08449},
    {"variant": "c, d", "psnr": 8.0, "ssim": 1, "lpips": 0.0704},
]


def test_markdown() -> None:
    columns = (VARIANT, *METRICS[:3])
    assert table(columns, ROWS, {"lpips": "no weights", "psnr": "never asked", "akd": "no such column"}) == (
        "| variant | PSNR | SSIM | LPIPS |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| a\\|b | 24.94 | 0.881 |  |\n"
        "| c, d | 8.00 | 1.000 | 0.070 |\n"
        "\n"
        "LPIPS: no weights\n"
    )


def test_metrics_with_one_reason_share_a_note() -> None:
    assert table(COLUMNS, ROWS, {"aed": "why", "apd": "why", "akd": "else"}).endswith(
        "\n\nAED, APD: why\n\nAKD: else\n"
    )


def test_csv() -> None:
    read = list(csv.DictReader(io.StringIO(csv_table(COLUMNS, ROWS))))
    assert [row["variant"] for row in read] == ["a|b", "c, d"]
    assert read[0]["psnr"] == "24.94" and read[0]["aed"] == "0.084" and read[0]["lpips"] == read[1]["aed"] == ""
