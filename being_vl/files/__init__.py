"""Files: written whole or not at all, read within limits, folders locked and claimed.

Every room reads and writes through these names. Below, in the order in which the modules build on each other:
`errors` names file and value, `places` gives bytes, `parsing` values, `archives` the members of tars, `model_folders`
looks at checkpoints; `atomic` writes, `ownership` is for a folder that one run owns, `processes` for the several
that may write to it, and `results` for the one record that evaluation writes and model cards read.
"""

from .archives import no_member, tar_members
from .atomic import flush, new_file, new_folder, write_atomic, write_json
from .errors import reading, shown, writing
from .model_folders import check_model_folder, read_weight_map
from .ownership import check_entries, check_file, claim, file_entry, locked, refuse_others
from .parsing import check_yaml, is_of, load_json, parse_json, read_json, read_yaml, record
from .places import check_regular, is_remote, place, read_bytes, read_text
from .processes import wait_for_everyone
from .results import RESULTS_FOLDER, Result, load_results, result_path

__all__ = [
    "RESULTS_FOLDER",
    "Result",
    "check_entries",
    "check_file",
    "check_model_folder",
    "check_regular",
    "check_yaml",
    "claim",
    "file_entry",
    "flush",
    "is_of",
    "is_remote",
    "load_json",
    "load_results",
    "locked",
    "new_file",
    "new_folder",
    "no_member",
    "parse_json",
    "place",
    "read_bytes",
    "read_json",
    "read_text",
    "read_weight_map",
    "read_yaml",
    "reading",
    "record",
    "refuse_others",
    "result_path",
    "shown",
    "tar_members",
    "wait_for_everyone",
    "write_atomic",
    "write_json",
    "writing",
]
