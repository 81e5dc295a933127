"""Python runs this at the start of each process that has this folder on PYTHONPATH: faults, if asked for."""

import os

if os.environ.get("TI2V_STORE_FAULTS"):
    import faulty_stores

    faulty_stores.install()
if os.environ.get("TI2V_FAILING_STARTS"):
    import failing_starts

    failing_starts.install()
