"""``python -m spatialavatar``: the same as the ``spatialavatar`` command."""

from spatialavatar.cli.main import run

run()
