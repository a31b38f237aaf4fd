"""Found by each Python that is started with this folder in PYTHONPATH."""

import removal

removal.apply()
