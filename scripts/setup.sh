# Sourced by run and test: finds Swift and Python, makes .venv, installs what changed.
# usage: . scripts/setup.sh; setup [EXTRA]

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$root/.venv"

die() { printf '%s\n' "$@" >&2; exit 1; }

find_swift() {
    command -v swift >/dev/null && return
    for place in /opt/swift/usr/bin "$HOME/.swiftly/bin" "$HOME/.local/share/swiftly/bin"; do
        if [ -x "$place/swift" ]; then PATH="$place:$PATH"; return; fi
    done
    die "The engine is written in Swift, and no swift was found on PATH." \
        "  macOS   install Xcode 26 or newer, or its command line tools: xcode-select --install" \
        "  Linux   https://www.swift.org/install/linux  (Swift 6.3 or newer)"
}

find_python() {
    for python in python3.13 python3.12 python3.11 python3; do
        if command -v "$python" >/dev/null &&
            "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            return
        fi
    done
    die "Python 3.11 or newer with venv is needed." \
        "  macOS   brew install python@3.13" \
        "  Debian  apt-get install python3 python3-venv"
}

# What the install depends on; unchanged since the last time means nothing to do.
fingerprint() {
    { cat "$root/pyproject.toml" "$root/Package.swift" "$root/scripts/hatch_build.py"; echo "$1"
      find "$root/swift" -type f \( -name '*.swift' -o -name '*.c' -o -name '*.h' -o -name '*.metal' \) \
          -exec cksum {} + | sort; } | cksum
}

setup() {
    local extra="${1:-}" stamp="$venv/.pyds4-installed-${1:-base}" now
    find_swift
    if [ ! -x "$venv/bin/python" ]; then
        find_python
        echo "Making .venv with $python" >&2
        "$python" -m venv "$venv"
    fi
    now="$(fingerprint "$extra")"
    if [ "$(cat "$stamp" 2>/dev/null)" != "$now" ]; then
        echo "Building the engine and installing pyds4${extra:+ with $extra} into .venv (the first time takes minutes)" >&2
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e "$root${extra:+[$extra]}" >&2
        printf '%s' "$now" >"$stamp"
    fi
}
