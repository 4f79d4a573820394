"""Every bench, each to its end whatever became of those before; at last which missed a limit, and which broke."""

import subprocess
import sys
import time
from pathlib import Path

from brickreel import files


def main() -> None:
    """Run them; status 1 if one missed or broke."""
    said = []
    for script in sorted(Path(__file__).parent.glob("[!_]*.py")):
        print(f"== bench/{script.name}", flush=True)
        began = time.time()
        status = subprocess.run([sys.executable, str(script)], check=False).returncode
        if status:
            # Python ends with 1 after an exception too: a missed limit stands in what the bench has just written.
            names = missed(Path(f"results/bench/{script.stem}.json"), began) if status == 1 else []
            told = f"missed {'; '.join(names)}" if names else f"broke: status {status}"
            said.append(f"bench/{script.name} {told}")
    print("==", *said or ["no bench missed a limit or broke"], sep="\n")
    sys.exit(bool(said))


def missed(path: Path, since: float) -> list[str]:
    """Names of the limits that a bench missed, of results that are not older than a moment."""
    if not path.exists() or path.stat().st_mtime < since:
        return []
    return [one["name"] for one in files.read_json(path).get("limits", []) if one["verdict"] == "MISSED"]


if __name__ == "__main__":
    main()
