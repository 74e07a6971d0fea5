# Sourced by quickstart.sh and test.sh: makes .venv in the project if it is missing, and installs genimg into it.
# usage: prepare_environment [EXTRA]

prepare_environment() {
  local extra=${1:-} python=${PYTHON:-python3} spec=.
  [ -n "$extra" ] && spec=".[$extra]"
  VENV=${GENIMG_VENV:-$PWD/.venv}
  if [ ! -x "$VENV/bin/python" ]; then
    "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || {
      echo "genimg needs Python 3.11, 3.12 or 3.13, but $python is $("$python" --version 2>&1): set PYTHON to another one" >&2
      return 1
    }
    echo "making a virtual environment in $VENV"
    "$python" -m venv "$VENV"
  fi
  # The stamp is a copy of the installed pyproject.toml, so a second start takes no time.
  local stamp="$VENV/genimg-installed${extra:+-$extra}"
  if ! cmp -s pyproject.toml "$stamp"; then
    echo "installing genimg and its dependencies (PyTorch is large: this takes a few minutes)"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$spec"
    cp pyproject.toml "$stamp"
  fi
}
