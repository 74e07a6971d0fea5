"""scripts/caption_accuracy.py counts what the classifier sees."""

import json
import subprocess
import sys
from pathlib import Path

from PIL import Image

from genimg.data.datasets.shapes import ShapesDataset

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "caption_accuracy.py"


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, str(folder)], capture_output=True, text=True, check=False)


def test_drawn_shapes_are_seen_as_what_they_are_and_a_wrong_caption_is_counted(tmp_path: Path) -> None:
    source = ShapesDataset(seed=3, num_images=40, image_size=32, channels=3, num_objects=1)
    lines = []
    for index in range(len(source)):
        Image.fromarray(source.read(index).transpose(1, 2, 0)).save(tmp_path / f"{index}.png")
        lines.append({"file_name": f"{index}.png", "text": source.caption(index)})
    color, shape = lines[0]["text"].split()[-2:]
    lines[0]["text"] = f"one {'blue' if color == 'red' else 'red'} {shape}"
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    table = [line.split(" | ") for line in run(tmp_path).stdout.splitlines()]
    assert table[-1][:5] == ["| all", "40", "97.5%", "97.5%", "100.0%"]
    wrong = next(row for row in table if row[0] == f"| {lines[0]['text']}")
    assert wrong[1:5] == ["1", "0.0%", "0.0%", "100.0%"]
    assert wrong[5].startswith(f"{color} {shape} (1)")


def test_a_folder_without_captions_is_refused(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.returncode == 1
    assert f"{tmp_path / 'metadata.jsonl'} does not exist" in result.stderr
    assert "Traceback" not in result.stderr
