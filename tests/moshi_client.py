"""`python -m moshi.client` as published, without torch: the package is entered by its folder, past its own `__init__`."""

import importlib.util
import runpy
import sys
import types

spec = importlib.util.find_spec("moshi")
package = types.ModuleType("moshi")
package.__path__ = list(spec.submodule_search_locations)
sys.modules["moshi"] = package
runpy.run_module("moshi.client", run_name="__main__", alter_sys=True)
