#!/usr/bin/env bash
# Bring a store and its export up to date with a folder of photos and captions.
#
#     nightly.sh PHOTOS [NEW [GONE]]
#
# NEW (default 0.2): the pipeline is fitted again once the store has grown or shrunk by more than
# this share since the last fit. GONE (default 0.1): nothing is done if more than this share of the
# rows would be removed.
#
# Exit codes: 0 up to date; 10 up to date, but new or changed inputs could not be read; 11 too many
# rows would be removed; 75 another run is not over; else the code of the command that failed.
# Whatever the commands print is in logs/DATE.log, and its end is printed if the code is not 0.
set -euo pipefail
photos=${1:?usage: nightly.sh PHOTOS [NEW [GONE]]}
new=${2:-0.2}
gone=${3:-0.1}
mkdir -p logs reports

# One run at a time: the lock is held as long as this script or one of its commands runs
if command -v flock > /dev/null; then
    exec 9> reports/lock
    flock -n 9 || { echo "Another nightly run in $PWD is not over." >&2; exit 75; }
fi
rm -f reports/*.json

log=logs/$(date +%F).log
exec 3>&1 >> "$log" 2>&1
say() { echo "$(date +'%F %T') $1"; }
end() { say "end, exit code $1"; [ "$1" = 0 ] || tail -n 30 "$log" >&3; }
say "start: $photos"
trap 'end $?' EXIT

# Commands run in the background, so that a signal is passed on to them at once
trap 'kill $(jobs -p) 2> /dev/null || true; wait; exit 143' TERM INT
run() { "$@" & wait $!; }
# Prints a value of a JSON file of reports/
value() { python3 -c "import json; report = json.load(open('reports/$1')); print($2)"; }
holds() { [ -s "reports/$1" ] && [ "$(value "$1" "bool($2)")" = True ]; }

# A folder that is only half there, such as a disk that is not mounted, must not empty the store
run c3 embed "$photos" --update --prune --dry-run --json reports/plan.json
rows="report['modalities'].values()"
if ! holds plan.json "sum(m['to_remove'] - $gone * (m['already'] + m['to_remove']) for m in $rows) <= 0"; then
    say "More than $gone of the rows would be removed. If that is right: nightly.sh $photos $new 1"
    exit 11
fi

run c3 embed "$photos" --update --prune --json reports/embed.json
run c3 verify --json reports/verify.json

# New and changed rows go through the fit that is there
export_with() { run c3 export --preset gr-clip --json reports/export.json "$@"; }
refit() { say "Refitting because $1"; export_with --refit; }
status=0
export_with || status=$?
if [ "$status" = 0 ]; then
    fit="report['fit']"
    if holds export.json "abs($fit['now'] - $fit['fitted']) > $new * $fit['fitted']"; then
        refit "more than $new of the rows were added or removed since the last fit."
    fi
elif holds export.json "'--refit' in (report['remedy'] or '')"; then
    refit "$(value export.json "report['error']")"
else
    exit "$status"
fi
run c3 verify --store c3-export --json reports/verify-export.json

# Hand over: reports/refitted holds the time from which on all vectors are other ones
if ! cmp -s c3-export/transform.safetensors reports/fit.safetensors; then
    date +'%F %T' > reports/refitted
    cp c3-export/transform.safetensors reports/fit.safetensors
fi
holds embed.json "not any(m['failed'] or m['not_updated'] for m in $rows)" || exit 10
