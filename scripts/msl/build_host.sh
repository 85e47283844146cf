#!/bin/sh
# build_host.sh k.metal|all out.so [fast|asan|race] [-DX=...]
set -e
here=$(cd "$(dirname "$0")" && pwd); k=$1; out=$2; mode=${3:-fast}; shift; shift; [ $# -gt 0 ] && shift
CXX=${MSL_CLANG:-clang++}
gen=$(mktemp --suffix=.cpp); if [ "$k" = all ]; then python3 "$here/library.py" host -o "$gen"; else python3 "$here/mslc.py" host "$k" -o "$gen"; fi
com="-fPIC -g1 -Wall -Wno-unknown-attributes -Wno-pass-failed -Wno-ignored-attributes -Wno-unused-variable -Wno-unused-function -Wno-duplicate-decl-specifier"
kf="-std=c++14 -Werror=c++17-extensions -Xclang -ffloat16-excess-precision=none -ffp-contract=off -mf16c -mfma -I$here/shim -I$here/shim/host $*"
case $mode in
  fast) o="-O2"; k2=""; l="";;
  asan) o="-O1 -fsanitize=address,undefined -fno-sanitize=function -fno-sanitize-recover=undefined"; k2="-fno-sanitize=alignment"; l="-fsanitize=address,undefined -shared-libasan";;
  race) o="-O1 -DMSL_RACE"; k2="-fsanitize=thread -fno-vectorize -fno-slp-vectorize -mllvm -tsan-instrument-func-entry-exit=0"; l="";;
esac
[ $mode = asan ] && k2=""
$CXX $com $kf $o $k2 -c "$gen" -o "$out.k.o"
$CXX $com -std=c++17 $o -c "$here/shim/host_rt.cpp" -o "$out.rt.o"
$CXX -shared -o "$out" "$out.k.o" "$out.rt.o" $l
rm -f "$gen" "$out.k.o" "$out.rt.o"
