#!/bin/sh
# install.sh PYTHON VENV CONSTRAINTS|- REQUIREMENTS: a virtual environment with REQUIREMENTS in it.
# With uv it takes seconds, with pip minutes; both give the same versions, those of the constraints file.
set -eu
python=$1 venv=$2 constraints=$3 requirements=$4

"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || {
    echo "Python 3.11 or 3.12 is needed, $python is $("$python" -V); run make PYTHON=python3.11" >&2
    exit 1
}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
[ "$constraints" = - ] && limit= || limit="-c $constraints"

# uv knows nothing of pip's own settings; wheels that lie beside the index are named there.
links=${PIP_FIND_LINKS:-$("$venv/bin/pip" config get global.find-links 2>/dev/null || true)}
[ -z "${links}" ] || UV_FIND_LINKS=${UV_FIND_LINKS:-$(echo "$links" | tr -s ' \n' ',,')}
export UV_FIND_LINKS

# Word splitting is meant here: options and requirements are lists of words.
# shellcheck disable=SC2086
"$venv/bin/pip" install --quiet --disable-pip-version-check $limit uv || true
# shellcheck disable=SC2086
if [ -x "$venv/bin/uv" ] && "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" $limit $requirements; then
    exit 0
fi
echo "uv did not manage; installing with pip, which takes minutes" >&2
# shellcheck disable=SC2086
exec "$venv/bin/pip" install --quiet --disable-pip-version-check $limit $requirements
