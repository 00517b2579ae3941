# Finds a Python that this project runs on. Sourced by the other scripts.

fail() {
    echo "error: $1" >&2
    echo "  $2" >&2
    exit 1
}

is_supported() {
    command -v "$1" >/dev/null 2>&1 && "$1" -c 'import sys; sys.exit(not ((3, 11) <= sys.version_info[:2] <= (3, 12)))' 2>/dev/null
}

# The interpreter that an active virtual environment stands on: the environment itself may be the one that is about to be made anew.
interpreter_below() { "$1" -c 'import sys; print(sys._base_executable)'; }

# $PYTHON and no other where it is set. pyenv keeps versions that its command of the name does not start.
find_python() {
    local names=(python3.11 python3.12 python3) name
    if [ -n "${PYTHON:-}" ]; then names=("$PYTHON"); fi
    for name in "${names[@]}"; do
        if is_supported "$name"; then interpreter_below "$name" && return; fi
        name="$(pyenv prefix "${name#python}" 2>/dev/null)/bin/$name"
        if is_supported "$name"; then interpreter_below "$name" && return; fi
    done
    fail "no Python 3.11 or 3.12 by the name of ${names[*]}" "install one, or name it: PYTHON=/path/to/python3.11 bash scripts/quickstart.sh"
}
