"""FLAME's numbers (Li et al. 2017), which the tools around it take for granted."""

VERTICES, FACES = 5023, 9976
TEETH_VERTICES, TEETH_FACES = 120, 168  # of the patch that trackers put after FLAME's own
SHAPE_CODES, EXPRESSION_CODES = 300, 100
