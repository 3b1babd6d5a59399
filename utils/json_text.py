"""JSON of external files: any error in one is a json.JSONDecodeError."""

import json


def parse(text: str | bytes, strict: bool = False):
    """json.loads, where nesting, integers and bytes that Python refuses are also JSONDecodeErrors. With `strict`, NaN
    and Infinity are as well."""
    try:
        return json.loads(text, parse_constant=_no_constant if strict else None)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", "", 0) from None
    except ValueError as error:  # an integer of more than 4,300 digits
        raise json.JSONDecodeError(str(error).split(";")[0], "", 0) from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
