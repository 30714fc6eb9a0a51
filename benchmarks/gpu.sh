#!/usr/bin/env bash
# What jittor-lora computes on this machine's GPU, how fast, and how torch with PEFT fares on the same GPU.
#
#   pip install -e '.[parity]'; bash benchmarks/gpu.sh
#
# Nothing is downloaded: bases have random weights, questions are those of the shipped sample. Each part has its own
# limit, and one that fails stops no other. Results are lines of $OUT/results.jsonl as they come; at the end
# gpu_report.py makes $OUT/report.md and a file for benchmarks/results/ of them. Parts come in the order of their value,
# so that a run that is cut short has found out most. All take 8 minutes on an H100 with 16 cores. Variables:
#
#   OUT        folder for results, by default runs/gpu
#   WORK       folder for models and runs, 2 GB, by default $OUT/work; kept, for the next time
#   LIMIT      seconds for everything, by default 480; with more, each part gets more
#   PARTS      the parts to run, by default all: see the end of this file
#   PYTHON     the interpreter, by default that of .venv if there is one
#   WHEELS     for a machine without a package index: a folder of wheels of what PYTHON lacks. They are put beside its
#              packages, numpy and Jittor where torch does not see them; and Python's headers are taken from
#              $WHEELS/include if the system has none
#   REFERENCE  what `gpu_checks.py write` wrote on a CPU; by default it is computed here, beside the first parts
#   TINY=1     tiny models, DEVICE=cpu without a GPU: to try this script
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-runs/gpu} LIMIT=${LIMIT:-480} PARTS=${PARTS:-} WHEELS=${WHEELS:-} REFERENCE=${REFERENCE:-}
DEVICE=${DEVICE:-cuda}
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo "$PWD/.venv/bin/python" || echo python3)}
mkdir -p "$OUT" "${WORK:=$OUT/work}"
OUT=$(cd "$OUT" && pwd) work=$(cd "$WORK" && pwd) began=$SECONDS
log=$OUT/log.txt results=$OUT/results.jsonl
: >"$results"
exec > >(tee "$log") 2>&1
screen=$!
export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD/src HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
peers=""
tiny=${TINY:+--tiny}

left() { echo $((LIMIT - SECONDS + began)); }
wanted() { [ -z "$PARTS" ] || [[ " $PARTS " == *" $1 "* ]]; }

# part NAME SECONDS COMMAND...: what becomes of it is a line of the results.
part() {
  local name=$1 limit=$2 started=$SECONDS status
  [ "$LIMIT" -le 480 ] || limit=$((limit * LIMIT / 480))
  shift 2
  wanted "$name" || return 0
  [ "$(left)" -lt "$limit" ] && limit=$(left)
  if [ "$limit" -lt 8 ]; then
    echo "== no time left for $name"
    status=-1
  else
    echo "== $((SECONDS - began)) s: $name, at most $limit s"
    timeout -k 5 "$limit" "$@"
    status=$?
    [ $status = 0 ] || echo "== $name: status $status"
  fi
  echo "{\"part\": \"part\", \"name\": \"$name\", \"seconds\": $((SECONDS - started)), \"status\": $status}" >>"$results"
}

speed() {
  part "$1-$2-$3" "$4" "$PYTHON" benchmarks/gpu_speed.py "$1" "$2" "$3" --bases "$work/bases" --output "$OUT" \
    --device "$DEVICE" ${peers:+--peers-path "$peers"} $tiny "${@:5}"
}

prepare() {
  if [ -n "$WHEELS" ]; then
    local name own=() others=()
    for name in "$WHEELS"/*.whl; do
      case $(basename "$name") in
        numpy-* | jittor-*) own+=("$name") ;;
        *) others+=("$name") ;;
      esac
    done
    pip=("$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target)
    "${pip[@]}" "$work/own" "${own[@]}" || return 1
    [ ${#others[@]} = 0 ] || "${pip[@]}" "$work/site" "${others[@]}" || return 1
    peers=$PYTHONPATH:$work/site
    export PYTHONPATH=$PYTHONPATH:$work/own:$work/site
    local headers
    headers=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
    if [ ! -f "$headers/Python.h" ] && [ -f "$WHEELS/include/Python.h" ]; then
      # Stands for python3-config: of it Jittor asks the headers' folder and the suffix of extensions.
      local suffix
      suffix=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
      printf '#!/bin/sh\ncase "$1" in --includes) echo "-I%s" ;; --extension-suffix) echo "%s" ;; esac\n' \
        "$(cd "$WHEELS" && pwd)/include" "$suffix" >"$work/python3-config"
      chmod +x "$work/python3-config"
      export python_config_path=$work/python3-config
    fi
  fi
  "$PYTHON" benchmarks/gpu_machine.py "$results" --folder "$work" --device "$DEVICE"
}

# On the CPU while nvcc compiles: the bases, the CPU's Jittor, and the numbers that the GPU's are compared with.
beside() {
  "$PYTHON" benchmarks/gpu_bases.py "$work/bases" $tiny
  export nvcc_path=
  "$PYTHON" -c "from jittor_lora.ops.backend import kernels_work; kernels_work()"
  if [ -z "$REFERENCE" ] && { wanted checks || wanted stock-checks; }; then
    "$PYTHON" benchmarks/gpu_checks.py write "$work/reference.npz" $tiny
  fi
}

# A process for each group of operations: an error on a GPU ends all that a process has to do there.
checks() {
  local group pids=() status=0
  for group in norms activations linear attention cross_entropy arrays optimizer networks; do
    "$PYTHON" benchmarks/gpu_checks.py compare "${REFERENCE:-$work/reference.npz}" "$results" --groups $group $tiny "$@" &
    pids+=($!)
  done
  for group in "${pids[@]}"; do wait "$group" || status=1; done
  return $status
}

profile() {
  local side
  for side in ours peers; do
    PYTHONPATH=$([ $side = peers ] && [ -n "$peers" ] && echo "$peers" || echo "$PYTHONPATH") \
      "$PYTHON" benchmarks/gpu_profile.py $side gpt2 "$1" --bases "$work/bases" --output "$OUT" --device "$DEVICE" $tiny
  done
}

# With fewer and fewer threads, as long as there is time.
on_the_processor() {
  local threads cores
  cores=$(nproc)
  for threads in 16 8 4 2 1; do
    [ "$threads" -gt "$cores" ] || nvcc_path='' "$PYTHON" benchmarks/gpu_speed.py cpu gpt2 "$1" --bases "$work/bases" \
      --output "$OUT" --device cpu --threads "$threads" --warmups 1 --repeats 2 ${peers:+--peers-path "$peers"} $tiny
  done
}

prepare || { echo "== not ready to measure"; exit 1; }
export -f checks profile on_the_processor
export PYTHON results work OUT DEVICE tiny peers REFERENCE

beside >"$OUT/beside.txt" 2>&1 &
background=$!
part doctor 240 "$PYTHON" -m jittor_lora doctor --deep
wait $background || echo "== the CPU's part: see $OUT/beside.txt"
echo "== $((SECONDS - began)) s: prepared"
part checks 90 bash -c checks
speed training gpt2 bf16 90
part profile 60 bash -c "profile bf16"
speed decoding gpt2 bf16 75
part kernels 60 "$PYTHON" benchmarks/cuda_kernels.py --output "$OUT" --base "$([ -n "$tiny" ] && echo tiny || echo gpt2)"
part resume 75 "$PYTHON" benchmarks/gpu_resume.py --bases "$work/bases" --output "$OUT" --work "$work/resume"
speed training smollm2 bf16 75
speed steps gpt2 tf32 40
speed steps gpt2 fp32 40
speed compiled-decoding gpt2 bf16 90
speed compiled gpt2 bf16 90
speed decoding smollm2 bf16 60
part stock-checks 90 bash -c "checks --stock"
speed stock gpt2 bf16 75
part cpu 600 bash -c "on_the_processor bf16"
"$PYTHON" benchmarks/gpu_report.py "$results" --output "$OUT"
exec >/dev/null 2>&1
wait $screen  # the last lines may be on their way
