"""The bench is no part of the package: it is imported from the top of the checkout, however pytest was started."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
