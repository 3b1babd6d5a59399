"""JSON of external files: any error in one is a json.JSONDecodeError."""

import json


def parse(text: str):
    """json.loads, where nesting and integers that Python refuses are also JSONDecodeErrors."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", "", 0) from None
    except ValueError as error:  # an integer of more than 4,300 digits
        raise json.JSONDecodeError(str(error).split(";")[0], "", 0) from None
