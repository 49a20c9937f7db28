"""One HTML page about what was made: data sets, trainings, sweeps, fleets, evaluations and avatars, by their folders.

``kinds.py`` knows which folder is what; ``data.py``, ``training.py``, ``sweep.py``, ``fleet.py``, ``evaluation.py``,
``avatar.py`` and ``steps.py`` each read one kind into the values of ``content.py``; ``page.py`` writes the page.
"""

from spatialavatar.report.kinds import read_section
from spatialavatar.report.page import write_page
from spatialavatar.report.steps import read_steps

__all__ = ["read_section", "read_steps", "write_page"]
