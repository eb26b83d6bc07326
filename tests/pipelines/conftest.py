"""The S3 server that the tests of `shared` use."""

import importlib.util
from pathlib import Path

_spec = importlib.util.spec_from_file_location("shared_conftest", Path(__file__).parents[1] / "shared" / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
bucket, s3_server = _module.bucket, _module.s3_server
