#!/usr/bin/env bash
# Every speed figure of a machine with a GPU, from a plain checkout, in less than ten minutes; on a CPU it works too.
#
#     benchmarks/gpu.sh FOLDER [diffusers.whl]
#
# Needs Python 3.11 or newer with torch, transformers and diffusers, or a wheel of diffusers as second argument; no Ray.
# Results go into FOLDER, and what was printed into FOLDER/*.log. SMALL=1 makes the smallest form of each, to try it out.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=${1:?name the folder for the results}
mkdir -p "$folder"
export PYTHONPATH=.
if [ -n "${2:-}" ]; then
  python3 -m pip install --quiet --no-deps --no-index --target "$folder/packages" "$2" || exit 1
  export PYTHONPATH=".:$folder/packages"
fi
device=$(python3 -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")') || exit 1

small() { [ -n "${SMALL:-}" ] && echo "$@"; }

failed=0
# A script that fails or takes too long takes none of the others with it.
step() {
  local limit_s=$1 name=$2
  shift 2
  local began=$SECONDS
  timeout "$limit_s" python3 "benchmarks/$name.py" "$@" >"$folder/$name.log" 2>&1
  local code=$?
  [ $code = 0 ] || failed=1
  echo "$name: exit $code, $((SECONDS - began)) s"
  grep '^|' "$folder/$name.log" || tail -n 5 "$folder/$name.log"
}

step 240 engine_speed --json "$folder/engine_speed_$device.json" \
  $(small --model tiny --dtypes float32 --slots 1 2 --steps 2 --iterations 1 --rounds 1 --usual-rounds 0)
step 90 savings --json "$folder/savings_$device.json" $(small --model tiny --dtypes float32 --rounds 1)
step 150 flat --json "$folder/flat_$device.json" $(small --model tiny --lengths 9 10 --videos 1 --slots 1)
if [ "$device" = cuda ]; then
  step $((590 - SECONDS)) wan_shape --output "$folder/wan_shape.json"
fi
exit $failed
