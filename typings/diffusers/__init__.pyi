# Diffusers annotates a method that returns a tuple or an output object with the union of both, schedulers with tensor
# classes that no tensor is an instance of, and configurations as plain dicts. Checked against that, correct code is all
# errors: for the type checker everything in diffusers is Any.
from typing import Any

def __getattr__(name: str) -> Any: ...
