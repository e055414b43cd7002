#!/usr/bin/env bash
# Bring a store and its export up to date with a folder of photos and captions.
#
#     nightly.sh PHOTOS [SHARE]
#
# SHARE (default 0.2): the pipeline is fitted anew once more than this share of the rows is new.
# Exit codes: 0 everything is up to date; 1 everything is up to date but for the inputs listed in
# c3-store/failures.parquet, or a command ended with an error; 3 the store is damaged.
set -euo pipefail
photos=${1:?usage: nightly.sh PHOTOS [SHARE]}
share=${2:-0.2}
mkdir -p reports

# Returns 0 if the expression, in which `report` is a JSON file of reports/, is true
holds() { python3 -c "import json, sys; report = json.load(open('reports/$1')); sys.exit(not ($2))"; }

# With --strict, the exit code is 1 if some inputs could not be read; all others were embedded
status=0
c3 embed "$photos" --update --prune --strict --json reports/embed.json || status=$?
[ "$status" -le 1 ] || exit "$status"
holds embed.json "'error' not in report" || exit 1

c3 verify --json reports/verify.json

# New and changed rows go through the fit that is there. It is made anew once too many rows are new,
# and where c3 refuses the old one, for example if all shards have changed.
export_with() { c3 export --preset gr-clip --json reports/export.json "$@"; }
export_with || export_with --refit
if holds export.json "report['fit']['unchanged'] < (1 - $share) * report['fit']['now']"; then
    export_with --refit
fi
exit "$status"
